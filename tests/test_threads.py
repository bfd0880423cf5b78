"""The kernel's threads: how many there are, when there are none to be had, forks, and interrupts."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import fubini
from fubini.solvers import interrupts as _interrupts


def run(code: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    names = ("FUBINI_NUM_THREADS", "OMP_NUM_THREADS")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    given = {name: value for name, value in environment.items() if value is not None}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=kept | given,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


# The extension as importing the package loads it, without PennyLane and torch, which take seconds.
CORE = f"""
import sys, types
sys.modules["fubini"] = types.ModuleType("fubini")
sys.modules["fubini"].__path__ = [{str(Path(fubini.__file__).parent)!r}]
from fubini import _core
"""


@pytest.mark.parametrize(
    ("own", "openmp", "expected"),
    [
        ("5", None, 5),
        (" 7 ", None, 7),
        (None, "3", 3),
        (None, "6,2", 6),
        ("4", "3", 4),
        ("", "3", 3),
        (None, "100000", 1024),
    ],
)
def test_the_environment_sets_the_number_of_threads(
    own: str | None, openmp: str | None, expected: int
) -> None:
    found = run(CORE + "print(_core.num_threads())", FUBINI_NUM_THREADS=own, OMP_NUM_THREADS=openmp)
    assert found.stdout == f"{expected}\n", found.stderr


@pytest.mark.parametrize("openmp", [None, "", "many", "0", "-2"])
def test_without_a_number_every_processor_gets_a_thread(openmp: str | None) -> None:
    found = run(CORE + "print(_core.num_threads())", OMP_NUM_THREADS=openmp)
    assert found.stdout == f"{len(os.sched_getaffinity(0))}\n", found.stderr


@pytest.mark.parametrize("own", ["abc", "0", "-1", "1.5", "1025", "1e2", "99999999999999999999"])
def test_an_impossible_number_of_threads_is_refused_at_import(own: str) -> None:
    found = run(CORE, FUBINI_NUM_THREADS=own)
    assert found.returncode != 0
    assert (
        f"FUBINI_NUM_THREADS: expected a whole number from 1 to 1024, got {own!r}" in found.stderr
    )


SYSTEMS = (
    CORE
    + """
import faulthandler, os, threading, time
import numpy as np
faulthandler.dump_traceback_later(200, exit=True)
_core.set_num_threads({threads})
g = np.tile(np.eye(3), (5000, 1, 1)); b = np.ones((5000, 3))
solve = lambda: bool((_core.solve_fast(g, b, 0.0) == 1).all())
assert solve()
"""
)

CIRCUIT = """
builder = _core.ProgramBuilder(12, 120, False)
for layer in range(10):
    for k in range(12):
        builder.gate("RY", [k], [], [], False, [(12 * layer + k, 1.0, 0.0)])
    for k in range(11):
        builder.gate("CNOT", [k, k + 1], [], [], False, [])
builder.pauli_term(0, 1.0, "Z", [0])
builder.output(0)
program = builder.build()
"""


@pytest.mark.parametrize("threads", [4, 64, 1000])
def test_fewer_threads_where_the_system_grants_no_more(threads: int) -> None:
    """std::system_error of a thread that cannot start ended the process."""
    code = (
        "import resource\n"
        + SYSTEMS.format(threads=2)
        + f"""
size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (size + 100 * 2**20,) * 2)  # about ten stacks
_core.set_num_threads({threads})
for _ in range(3):
    assert solve()
print(_core.num_threads())
"""
    )
    found = run(code)
    assert found.stdout == f"{threads}\n", found.stderr


def test_fork_while_another_thread_is_in_a_sweep() -> None:
    """The fork waited for the pool with Python's lock, and the sweep with the pool for Python's lock."""
    code = (
        SYSTEMS.format(threads=2)
        + CIRCUIT
        + """
angles = np.random.default_rng(0).normal(size=(64, 120))
expected = _core.expval(program, angles)
done = threading.Event()
def sweep():
    while not done.is_set():
        assert (_core.expval(program, angles) == expected).all()
thread = threading.Thread(target=sweep)
thread.start()
for _ in range(8):
    time.sleep(0.07)  # sweeps look for signals every 50 ms
    pid = os.fork()
    if pid == 0:
        right = solve() and (_core.expval(program, angles[:8]) == expected[:8]).all()
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0
done.set()
thread.join()
print("done")
"""
    )
    found = run(code)
    assert found.stdout == "done\n", found.stderr


def test_fork_in_the_middle_of_a_computation_of_this_thread() -> None:
    """A handler of a signal that forks: the child has not the threads that hold parts of the result, and says so."""
    code = (
        SYSTEMS.format(threads=3)
        + CIRCUIT
        + """
import signal
angles = np.random.default_rng(0).normal(size=(512, 120))
expected = _core.expval(program, angles)
pids = []
signal.signal(signal.SIGALRM, lambda *_: pids.append(os.fork()))
signal.setitimer(signal.ITIMER_REAL, 0.06)
while not pids:
    try:
        right = (_core.expval(program, angles) == expected).all()
    except RuntimeError as error:
        right = "forked in the middle" in str(error)
    if 0 in pids:
        right = right and solve()
        os._exit(0 if right else 1)
    assert right
assert os.waitpid(pids[0], 0)[1] == 0
print("done")
"""
    )
    found = run(code)
    assert found.stdout == "done\n", found.stderr


LONG = {
    "cholesky": lambda n: fubini.solve(np.eye(n) + 1.0, np.ones(n), method="cholesky"),
    "auto": lambda n: fubini.solve(np.eye(n) + 1.0, np.ones(n)),
    "ldlt": lambda n: fubini.solve(np.eye(n) - 2.0, np.ones(n), method="ldlt"),
    "pinv": lambda n: fubini.solve(np.eye(n) + 1.0, np.ones(n), method="pinv"),
    "dual": lambda n: fubini.solve(np.ones((n, n // 2)), np.ones(n), method="dual", damping=1.0),
    "dual, undamped": lambda n: fubini.solve(np.ones((n, n)), np.ones(n), method="dual"),
    "blocks": lambda n: fubini.solve_blocks([np.eye(n)] * 2, [np.ones(n)] * 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_an_interrupt_does_not_wait_for_the_end_of_a_solve(name: str) -> None:
    begin = time.perf_counter()
    LONG[name](500)
    n = 2500
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    timer.start()
    begin = time.perf_counter()
    try:
        LONG[name](n)
        # Faster than the signal, which comes now; the thread that raises it is not the one that hears it.
        timer.join()
        time.sleep(0.5)
    except KeyboardInterrupt:
        # Python's own work, such as copies, is not waited for; a second on a busy machine.
        assert time.perf_counter() - begin < 2.0
    else:
        pytest.fail("the signal was lost")


def test_an_interrupt_reaches_what_does_not_ask_for_it() -> None:
    release = threading.Event()
    timer = threading.Timer(0.1, signal.raise_signal, [signal.SIGINT])
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            _interrupts.interruptible(1e12, release.wait, 30.0)
    finally:
        release.set()


def test_long_computations_return_and_raise_as_short_ones_do() -> None:
    for operations in (0.0, 1e12):
        assert _interrupts.interruptible(operations, divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            _interrupts.interruptible(operations, divmod, 7, 0)
        with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
            _interrupts.interruptible(operations, np.divide, np.ones(2), np.zeros(2))


@pytest.mark.parametrize("method", ["auto", "cholesky", "ldlt", "pinv", "dual"])
def test_long_solves_agree_with_short_ones(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 40))
    matrix = x if method == "dual" else x @ x.T
    rhs = rng.normal(size=(40, 2))
    short = fubini.solve(matrix, rhs, damping=0.1, method=method, return_info=True)[0]
    monkeypatch.setattr(_interrupts, "_LONG", 0.0)
    long = fubini.solve(matrix, rhs, damping=0.1, method=method, return_info=True)[0]
    np.testing.assert_array_equal(short, long)
    if method != "dual":
        np.testing.assert_array_equal(fubini.solve(matrix, rhs, damping=0.1, method=method), short)
