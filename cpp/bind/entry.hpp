// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <Python.h>

namespace fubini::bind {

/// Instruction set of the core that these wrappers are linked with.
const char* isa_name();

}  // namespace fubini::bind

extern "C" PyObject* PyInit__core();
