// SPDX-License-Identifier: Apache-2.0
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>
#include <string_view>

namespace {

bool cpu_runs([[maybe_unused]] std::string_view isa) {
#if defined(__x86_64__)
    if (isa == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == "avx512") return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
#endif
    return true;
}

}  // namespace

int main(int argc, char** argv) {
    if (!cpu_runs(FUBINI_ISA_NAME)) {
        std::puts("skipped: this CPU does not run " FUBINI_ISA_NAME);
        return 77;
    }
    doctest::Context context(argc, argv);
    return context.run();
}
