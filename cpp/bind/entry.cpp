// SPDX-License-Identifier: Apache-2.0
// What differs between the extension modules: the name of the instruction set, and that of the entry point.
#include "bind/entry.hpp"

const char* fubini::bind::isa_name() { return FUBINI_ISA_NAME; }

PyMODINIT_FUNC FUBINI_INIT() { return PyInit__core(); }
