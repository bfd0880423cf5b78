// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "bind/module.hpp"
#include "core/gauss_newton.hpp"

namespace fubini::bind {

inline OutputFamily family_from(const std::string& name) {
    if (name == "categorical") return OutputFamily::categorical;
    if (name == "bernoulli") return OutputFamily::bernoulli;
    if (name == "gaussian") return OutputFamily::gaussian;
    throw pybind11::value_error("family: expected 'categorical', 'bernoulli' or 'gaussian', got '" + name +
                                "'");
}

}  // namespace fubini::bind
