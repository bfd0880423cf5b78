// SPDX-License-Identifier: Apache-2.0
// Says which instruction sets this CPU runs; compiled without any instruction-set flags.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

PYBIND11_MODULE(_isa, m) {
    m.doc() = "Which instruction sets this CPU runs.";
    m.def(
        "supported",
        [] {
            std::vector<std::string> names;  // best first
#if (defined(__x86_64__)) && (defined(__GNUC__) || defined(__clang__))
            __builtin_cpu_init();
            const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                              __builtin_cpu_supports("bmi2");
            const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
            if (avx2 && avx512) names.emplace_back("avx512");
            if (avx2) names.emplace_back("avx2");
#endif
            names.emplace_back("baseline");
            return names;
        },
        "Instruction sets that this CPU runs, best first; the last one is 'baseline'.");
}
