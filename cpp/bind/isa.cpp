// SPDX-License-Identifier: Apache-2.0
// Says which instruction sets this CPU runs; compiled without any instruction-set flags.
#include <Python.h>

namespace {

PyObject* supported(PyObject* /*module*/, PyObject* /*unused*/) {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
    if (avx2 && avx512) return Py_BuildValue("[sss]", "avx512", "avx2", "baseline");
    if (avx2) return Py_BuildValue("[ss]", "avx2", "baseline");
#endif
    return Py_BuildValue("[s]", "baseline");
}

PyMethodDef methods[] = {{"supported", supported, METH_NOARGS,
                          "supported() -> list[str]\n\nInstruction sets that this CPU runs, best first; the "
                          "last one is 'baseline'."},
                         {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT,
                      "_isa",
                      "Which instruction sets this CPU runs.",
                      0,
                      methods,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__isa() { return PyModule_Create(&module); }
