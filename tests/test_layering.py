"""Who may import whom: folders stand in an order, arrows run down, and no import hides inside a function."""

import ast
import importlib
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import pennylane as qml
import pytest
import torch

import fubini

ROOT = Path(fubini.__file__).parent
REPOSITORY = Path(__file__).parents[1]
#: Files at the root that every folder may import.
GROUND = {"_core", "_isa", "errors", "arrays", "options", "runtime", "torch_private"}
#: Every folder may import those that stand before it.
ORDER = (
    "solvers",  # regularised systems
    "circuit",  # quantum functions as PennyLane records them
    "native",  # the engine
    "compile",  # quantum functions as expressions
    "devices",  # circuits on PennyLane's devices
    "blocks",  # metrics of parameters
    "nn",  # circuits in torch
    "metric",  # the metric functions
    "fisher",  # Fisher information of models
    "geometry",  # evolution, growth, reports
    "energies",  # ground states of flat numbers
    "optim",  # optimizers
    "demo",
)
#: The command line loads what it is asked for.
LAZY = {("fubini.__main__", "fubini.demo"), ("fubini.__main__", "fubini.demo.check")}

FILES = {
    ".".join(("fubini", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in ROOT.rglob("*.py")
}


def imports_of(name: str) -> Iterator[tuple[str, bool]]:
    """Modules of fubini that a module imports, and whether it does so inside a function or for types alone."""
    path = FILES[name]

    def visit(node: ast.AST, hidden: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            inside = hidden or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            inside = inside or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child))
            found: list[str] = []
            if isinstance(child, ast.ImportFrom):
                assert not child.level, f"{name}: relative import; write the whole name"
                found = [f"{child.module}.{alias.name}" for alias in child.names]
            elif isinstance(child, ast.Import):
                found = [alias.name for alias in child.names]
            for target in found:
                while target and target not in FILES:
                    target = target.rpartition(".")[0]
                if target and target not in ("fubini", name):
                    yield target, inside
            yield from visit(child, inside)

    yield from visit(ast.parse(path.read_text()), False)


IMPORTS = {name: sorted(set(imports_of(name))) for name in FILES}


def folder(name: str) -> str:
    return name.split(".")[1]


def is_file_at_the_root(name: str) -> bool:
    return FILES[name].parent == ROOT


@pytest.mark.parametrize("name", sorted(set(FILES) - {"fubini", "fubini.__main__"}))
def test_arrows_run_down(name: str) -> None:
    if is_file_at_the_root(name):
        allowed = GROUND
    else:
        assert folder(name) in ORDER, f"{folder(name)}: give it its place in ORDER"
        allowed = GROUND | set(ORDER[: ORDER.index(folder(name)) + 1])
    up = [target for target, _ in IMPORTS[name] if folder(target) not in allowed]
    assert not up, f"{name} may not import {up}"


def test_no_import_is_hidden() -> None:
    hidden = {(name, t) for name, targets in IMPORTS.items() for t, lazy in targets if lazy}
    assert hidden <= LAZY


def test_there_is_no_circle() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for target, _ in IMPORTS[name]:
                visit(target, (*path, name))
            done.add(name)

    for name in FILES:
        visit(name, ())


def test_benchmarks_import_what_is_there() -> None:
    """They, and the scripts of the documentation, are not run by the tests."""
    missing = []
    for path in [*(REPOSITORY / "bench").rglob("*.py"), *(REPOSITORY / "docs").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fubini":
                module = importlib.import_module(str(node.module))
                for name in (alias.name for alias in node.names):
                    if not hasattr(module, name) and not find_spec(f"{node.module}.{name}"):
                        missing.append(f"{path.name}: {node.module}.{name}")
    assert not missing


def test_the_root_shows_what_is_public() -> None:
    files = {path.stem for path in ROOT.glob("*.py")} - {"__init__", "__main__"}
    assert files <= GROUND
    assert set(dir(fubini)) == {*fubini.__all__, "__version__", "devices"}
    modules = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert not modules & set(fubini.__all__)  # a module would shadow the function of its name


def test_every_public_name_says_what_shows_it() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text().partition("## Public names")[2]
    rows = [row.split("|") for row in text.partition("\n## ")[0].splitlines() if row[:3] == "| `"]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row[1])}
    assert set(fubini.__all__) <= named, set(fubini.__all__) - named
    for row in rows:
        for path in re.findall(r"`([^`]+)`", row[-2]):
            file, _, test = path.partition("::")
            found = REPOSITORY / ("" if file.startswith("bench/") else "tests") / file
            assert found.exists(), path
            assert not test or f"def {test}(" in found.read_text(), path


def test_importing_loads_nothing_heavy() -> None:
    # Nothing but parts of PennyLane: torch._dynamo alone would take a second.
    code = (
        "import sys, pennylane, torch; before = set(sys.modules); import fubini;"
        "print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name for name in run.stdout.split() if name.partition(".")[0] != "fubini"}
    foreign = {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names}
    assert all(name.startswith("pennylane.") for name in foreign), sorted(foreign)


def visits(function: Callable[[], object]) -> list[str]:
    """The files of the package that a call goes through, one for each function that is entered."""
    found: list[str] = []

    def visit(frame: FrameType, event: str, _: object) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(str(ROOT)):
            found.append(path)

    before = sys.getprofile()
    sys.setprofile(visit)
    try:
        function()
    finally:
        sys.setprofile(before)
    return found


def changes(visited: list[str]) -> int:
    return sum(a != b for a, b in itertools.pairwise(visited))


def test_a_call_of_the_metric_stays_in_few_files() -> None:
    @qml.qnode(qml.device("default.qubit", wires=2))
    def circuit(w: torch.Tensor) -> object:
        qml.RY(w[0], 0)
        qml.CNOT([0, 1])
        qml.RX(w[1], 1)
        return qml.expval(qml.Z(0))

    metric = fubini.metric_tensor(circuit)
    w = torch.tensor([0.1, 0.2], requires_grad=True)
    metric(w)
    visited = visits(lambda: metric(w))
    assert len(set(visited)) <= 20, sorted(set(visited))
    assert changes(visited) <= 56  # half of what two descriptions of a circuit took


def test_a_step_with_the_quantum_metric_stays_in_few_files() -> None:
    @qml.qnode(qml.device("default.qubit", wires=2))
    def circuit(inputs: torch.Tensor, w: torch.Tensor) -> object:
        qml.AngleEmbedding(inputs, range(2))
        qml.RY(w[0], 0)
        qml.CNOT([0, 1])
        qml.RX(w[1], 1)
        return qml.expval(qml.Z(0))

    layer = fubini.QuantumLayer(circuit, {"w": 2})
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), layer)
    opt = fubini.QNGOptimizer(model, metric="quantum")
    x = torch.linspace(-1.0, 1.0, 12).reshape(4, 3)
    visited: list[str] = []
    for _ in range(2):
        opt.zero_grad()
        model(x).square().sum().backward()
        visited = visits(opt.step)
    assert len(set(visited)) <= 16, sorted(set(visited))
    assert changes(visited) <= 48
