"""Build information, instruction sets, threads, stubs, versions."""

import json
import os
import subprocess
import sys
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest

import fubini
import stubs
from fubini import _core, _isa

PACKAGE = Path(fubini.__file__).parent
SOURCE = Path(__file__).parents[1]


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def built_isas() -> list[str]:
    return [isa for isa in _isa.supported() if list(PACKAGE.glob(f"_core_{isa}.*"))]


def test_build_info() -> None:
    info = fubini.build_info()
    assert info["version"] == fubini.__version__
    assert f'version = "{fubini.__version__}"' in (SOURCE / "pyproject.toml").read_text()
    assert info["isa"] in info["supported_isas"] or info["isa"] == "native"
    assert info["supported_isas"][-1] == "baseline"
    try:
        assert version("fubini") == fubini.__version__
    except PackageNotFoundError:
        pytest.skip("running from the source tree")


ISA_PROBE = """
import json, numpy as np, fubini
from fubini import _core
r = np.random.default_rng(0)
g = r.normal(size=(5, 6, 6))
s = r.normal(size=(3, 8)) + 1j * r.normal(size=(3, 8))
x = fubini.solve(g @ g.transpose(0, 2, 1), r.normal(size=(5, 6)), damping=0.1)
b = _core.blocks_from_states(s, [[(1, 2, 0.5)], [(4, 4, 1.0), (0, 1, 0.3)]], 3)
print(json.dumps({"isa": _core.isa(), "solve": x.tolist(), "blocks": b.tolist()}))
"""


@pytest.mark.parametrize("isa", built_isas())
def test_every_built_instruction_set_loads_and_agrees(isa: str) -> None:
    result = run(ISA_PROBE, FUBINI_ISA=isa)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    expected = json.loads(run(ISA_PROBE, FUBINI_ISA=built_isas()[-1]).stdout)
    assert found["isa"] == isa
    for name in ("solve", "blocks"):  # fused multiply-add differs in the last bits
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-11, atol=1e-13)


def test_an_unknown_instruction_set_is_refused() -> None:
    result = run("import fubini", FUBINI_ISA="mmx")
    assert result.returncode != 0
    assert "FUBINI_ISA: expected one of" in result.stderr
    assert "got 'mmx'" in result.stderr


def test_number_of_threads() -> None:
    before = fubini.get_num_threads()
    try:
        fubini.set_num_threads(3)
        assert fubini.get_num_threads() == 3
        for bad in (0, 2000):
            with pytest.raises(ValueError, match=f"threads: expected 1 to 1024, got {bad}"):
                fubini.set_num_threads(bad)
        with pytest.raises(TypeError, match="threads: expected an integer, got float"):
            fubini.set_num_threads(1.5)  # type: ignore[arg-type]
        assert fubini.get_num_threads() == 3
    finally:
        fubini.set_num_threads(before)
    assert (
        run("import fubini; print(fubini.get_num_threads())", FUBINI_NUM_THREADS="5").stdout
        == "5\n"
    )


def test_the_same_bits_for_any_number_of_threads() -> None:
    rng = np.random.default_rng(1)
    states = rng.normal(size=(33, 64)) + 1j * rng.normal(size=(33, 64))
    generators = [[(int(x), int(z), 0.5)] for x, z in rng.integers(64, size=(6, 2))]
    before = fubini.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 7):
            fubini.set_num_threads(threads)
            results.append(_core.blocks_from_states(states, generators, 6))
    finally:
        fubini.set_num_threads(before)
    assert all(np.array_equal(results[0], r) for r in results)


def test_concurrent_calls_and_fork() -> None:
    rng = np.random.default_rng(2)
    probabilities = rng.dirichlet(np.ones(64), size=50)
    expected = _core.blocks_from_probabilities(probabilities, [[(0, 3, 1.0)]], 6)
    results: list[bool] = []

    def work() -> None:
        for _ in range(50):
            found = _core.blocks_from_probabilities(probabilities, [[(0, 3, 1.0)]], 6)
            results.append(bool(np.array_equal(found, expected)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert results == [True] * 200
    if hasattr(os, "fork"):
        code = (
            "import os, numpy as np, fubini; fubini.set_num_threads(4);"
            "g = np.tile(np.eye(3), (5000, 1, 1)); b = np.ones((5000, 3)); fubini.solve(g, b);"
            "pid = os.fork();"
            "x = fubini.solve(g, b);"
            "os._exit(0 if (x == 1).all() else 1) if pid == 0 else print(os.waitpid(pid, 0)[1])"
        )
        result = run(code, PYTHONWARNINGS="ignore")
        assert result.stdout == "0\n", result.stderr


def small_program() -> object:
    builder = _core.ProgramBuilder(2, 0, False)
    builder.output(0)
    return builder.build()


def built_twice() -> None:
    builder = _core.ProgramBuilder(2, 0, False)
    builder.build()
    builder.build()


EMPTY, SQUARE = np.ones((1, 0, 0)), np.ones((1, 2, 2))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: _core.solve_kronecker(SQUARE, SQUARE, [], np.ones(4), 0.1), ValueError),
        (
            lambda: _core.solve_kronecker(SQUARE, SQUARE, [2**62, 2**62], np.ones(4), 0.1),
            ValueError,
        ),
        (lambda: _core.solve_kronecker(SQUARE, SQUARE, [3, -1], np.ones(4), 0.1), ValueError),
        (lambda: _core.ProgramBuilder(2, 2**31 - 1, False), ValueError),
        (lambda: _core.ProgramBuilder(2, 0, False).output(2**31 - 1), ValueError),
        (lambda: _core.ProgramBuilder(2, 0, False).output(0, 2**31 - 1), ValueError),
        (
            lambda: _core.ProgramBuilder(2, 0, False).pauli_term(2**31 - 1, 1.0, "Z", [0]),
            ValueError,
        ),
        (
            lambda: _core.ProgramBuilder(2, 0, False).probability_term(2**31 - 1, 1.0, [0], 0),
            ValueError,
        ),
        (lambda: small_program().staged([], [(0, [(0, 1, 1.0, 2**31 - 1)])]), ValueError),
        (built_twice, ValueError),
        (lambda: _core.expval(small_program(), np.ones((2**40, 0))), MemoryError),
        (
            lambda: _core.derivative_states(small_program(), np.ones((4, 0)), repeat=2**62),
            MemoryError,
        ),
        (
            lambda: _core.metric_vector_product(
                small_program(), np.ones((4, 0)), np.ones((4, 2**50, 0))
            ),
            MemoryError,
        ),
        (lambda: _core.first_not_finite([np.ones(3, ">f8")]), TypeError),
        (lambda: _core.first_not_finite([misaligned(np.ones(3))]), TypeError),
        (lambda: _core.blocks_from_probabilities(np.ones((2, 3)), [[(0, 1, 1.0)]], 2), ValueError),
        (lambda: _core.blocks_from_probabilities(np.ones((2, 4)), [[(1, 0, 1.0)]], 2), ValueError),
        (lambda: _core.blocks_from_probabilities(np.ones((2, 4)), [], 2), ValueError),
        (
            lambda: _core.blocks_from_probabilities(
                np.ones((2, 4), np.float32), [[(0, 1, 1.0)]], 2
            ),
            TypeError,
        ),
        (lambda: _core.blocks_from_states(np.ones((2, 4)), [[(0, 1, 1.0)]], 2), TypeError),
        (
            lambda: _core.blocks_from_states(np.ones((2, 4), complex)[:, ::-1], [[(0, 1, 1.0)]], 2),
            TypeError,
        ),
        (
            lambda: _core.blocks_from_states(np.ones((2, 4), complex), [[(0, 1, 1.0)]], 99),
            ValueError,
        ),
        (lambda: _core.mean_over_batch(np.ones((0, 2))), ValueError),
        (lambda: _core.shift_rule([1.0, -1.0]), ValueError),
        (lambda: _core.ShiftPlan([0], [[1.0]]).angles(np.ones(3)), ValueError),
        (lambda: _core.ShiftPlan([5], [[1.0]]).angles(np.ones((1, 3))), ValueError),
        (lambda: _core.shift_rule([1.0], [0.1, 0.2]), ValueError),
        (lambda: _core.shift_sum(np.zeros(2, int), np.ones(2), np.ones((3, 1, 1)), 1), ValueError),
        (lambda: _core.shift_sum(np.zeros(2, int), np.ones(3), np.ones((2, 1, 1)), 1), ValueError),
        (lambda: _core.shift_sum(np.zeros(2, int), np.ones(2), np.ones((2, 1, 1)), 0), ValueError),
    ],
)
def test_the_extension_repeats_the_checks_for_direct_callers(
    call: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        call()  # type: ignore[operator]


def misaligned(values: np.ndarray) -> np.ndarray:
    memory = np.empty(values.nbytes + 1, np.uint8)
    odd = memory[1:].view(values.dtype).reshape(values.shape)
    odd[...] = values
    return odd


def test_systems_without_unknowns_have_no_eigenvalue_and_are_solved() -> None:
    for rows, width in ((0, 2), (3, 0), (0, 0)):
        found = _core.largest_eigenvalues(np.ones((4, rows, width)), np.ones((4, width, width)))
        np.testing.assert_array_equal(found, np.zeros(4))
    for left, right, widths in ((EMPTY, SQUARE, [2]), (SQUARE, EMPTY, []), (EMPTY, EMPTY, [0])):
        x, status = _core.solve_kronecker(left, right, widths, np.ones(0), 0.1)
        assert (x.size, status) == (0, 0)
    rows = np.ones((3, 2**40, 0))  # summed one by one they would take an hour
    assert _core.combine_rows(rows, 0).shape == (3, 0)


def test_largest_eigenvalue_of_tall_and_wide_factors() -> None:
    rng = np.random.default_rng(0)
    for rows, width, rank in ((2, 5, 2), (5, 5, 5), (9, 4, 4), (9, 4, 2), (7, 3, 0)):
        factor = rng.normal(size=(3, rows, rank)) @ rng.normal(size=(3, rank, width))
        root = rng.normal(size=(3, width, width))
        covariance = root @ root.transpose(0, 2, 1)
        full = factor @ covariance @ factor.transpose(0, 2, 1)
        np.testing.assert_allclose(
            _core.largest_eigenvalues(factor, covariance),
            np.linalg.eigvalsh(full)[:, -1],
            rtol=1e-12,
            atol=1e-12,
        )


def test_numbers_at_odd_addresses_are_copied() -> None:
    rng = np.random.default_rng(0)
    matrix, rhs = np.eye(5) * 2.0, rng.normal(size=5)
    for method in ("auto", "cg"):
        found = fubini.solve(misaligned(matrix), misaligned(rhs), method=method)
        np.testing.assert_allclose(found, rhs / 2, rtol=1e-15)
    inputs, weight = rng.normal(size=(3, 2)), rng.normal(size=(4, 2))
    np.testing.assert_array_equal(
        _core.linear_layer(misaligned(inputs), misaligned(weight), None),
        _core.linear_layer(inputs, weight, None),
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_garbage_is_refused_by_every_function_of_the_extension(seed: int) -> None:
    script = Path(__file__).with_name("fuzz_extension.py")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", script, "10000", str(seed)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "10000 calls" in result.stdout


def test_committed_stubs_are_those_of_the_extension() -> None:
    for name, text in stubs.generate().items():
        assert (SOURCE / "python" / "fubini" / name).read_text() == text, (
            f"{name}: run python tests/stubs.py"
        )


def test_mypy_strict() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=SOURCE, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
