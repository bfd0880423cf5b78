// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

namespace fubini {

/// Calls body<value>() for a value in [0, count) that is known when the program runs.
template <int count, typename Body>
inline void with_constant(int value, const Body& body) {
    [&]<int... i>(std::integer_sequence<int, i...>) {
        ((value == i ? body.template operator()<i>() : void()), ...);
    }(std::make_integer_sequence<int, count>());
}

}  // namespace fubini
