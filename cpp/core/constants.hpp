// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace fubini {

/// Calls body<value>() for a value in [0, count) that is known when the program runs. One jump: it stands
/// before loops of some ten nanoseconds.
template <int count, typename Body>
inline void with_constant(int value, const Body& body) {
    static_assert(count >= 1 && count <= 8);
    const auto at = [&]<int i>() {
        if constexpr (i < count) body.template operator()<i>();
    };
    switch (value) {
        case 0:
            return at.template operator()<0>();
        case 1:
            return at.template operator()<1>();
        case 2:
            return at.template operator()<2>();
        case 3:
            return at.template operator()<3>();
        case 4:
            return at.template operator()<4>();
        case 5:
            return at.template operator()<5>();
        case 6:
            return at.template operator()<6>();
        default:
            return at.template operator()<7>();
    }
}

}  // namespace fubini
