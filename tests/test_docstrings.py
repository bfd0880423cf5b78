"""Every public name says what goes in, what comes out and where it is from, and has an example, which runs."""

import doctest
import enum
import inspect
import re
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch

import fubini
from fubini.__main__ import main
from fubini.demo.check import check

mpl.use("agg")


#: Methods that come from papers, and what their docstring must say.
SOURCES = {
    "Absolute": "1944",
    "Armijo": "Armijo 1966",
    "Bernoulli": "arXiv:1412.1193",
    "CG": "Hestenes and Stiefel 1952",
    "Categorical": "arXiv:1412.1193",
    "Diagonal": "Marquardt 1963",
    "Dual": "arXiv:2302.01941",
    "Gaussian": "arXiv:1412.1193",
    "HeavyBall": "arXiv:2409.01978",
    "LevenbergMarquardt": "1978",
    "MetricSpectrum": "arXiv:2102.01659",
    "Poisson": "arXiv:1412.1193",
    "QNGOptimizer": "arXiv:1909.02108",
    "ShotQNGOptimizer": "arXiv:1912.08828",
    "SignalToNoise": "arXiv:1912.08828",
    "Spring": "arXiv:2401.10190",
    "TrustRegion": "arXiv:1708.05144",
    "effective_dimension": "arXiv:2011.00027",
    "energy_problem": "arXiv:2106.10558",
    "evolve": "arXiv:1812.08767",
    "geometric_tensor": "Berry 1989",
    "grow": "arXiv:1812.11173",
    "metric_derivative": "arXiv:1201.5885",
    "metric_spectrum": "arXiv:2102.01659",
    "metric_tensor": "arXiv:1909.02108",
    "minimize": "Nielsen 1999",
    "pool_scores": "Grimsley et al. 2019",
    "quantum_fisher": "arXiv:2103.15191",
    "report": "arXiv:1803.11173",
}
#: What returns or holds arrays.
SHAPES = (
    *("EnergyModel", "EnergyProblem", "Evolution", "Grown", "MetricOperator", "MetricSpectrum"),
    *("Minimum", "PoolScores", "QuantumLayer", "Report", "SciPyFunction", "compiled"),
    *("effective_dimension", "evolve", "geometric_tensor", "metric_derivative", "metric_tensor"),
    "quantum_fisher",
    *("report", "solve", "solve_blocks"),
)


@pytest.mark.parametrize("name", fubini.__all__)
def test_examples(name):
    thing = getattr(fubini, name)
    text = inspect.getdoc(thing) or ""
    assert ">>>" in text, f"{name}: add an Example section"
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    said: list[str] = []
    torch.manual_seed(0)
    with np.printoptions(legacy=False):
        doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(
            example, out=said.append
        )
    assert not said, "".join(said)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


def text_of(name):
    return inspect.getdoc(getattr(fubini, name)) or ""


def functions():
    return [name for name in fubini.__all__ if inspect.isfunction(getattr(fubini, name))]


def signature(thing):
    """The parameters that a reader sees; of exceptions, enumerations and what only functions make, none."""
    made_by_functions = ("Evolution", "Grown", "EnergyProblem", "SciPyFunction", "Circuit")
    if thing.__name__ in made_by_functions or issubclass_of(thing, (Exception, enum.Enum)):
        return []
    return [p for p in inspect.signature(thing).parameters if not p.startswith("_")]


def issubclass_of(thing, kinds):
    return inspect.isclass(thing) and issubclass(thing, kinds)


@pytest.mark.parametrize("name", fubini.__all__)
def test_every_argument_is_described(name):
    described = set(re.findall(r"^ +\*{0,2}(\w+): \S", text_of(name), flags=re.MULTILINE))
    assert set(signature(getattr(fubini, name))) <= described


@pytest.mark.parametrize("name", functions())
def test_functions_say_what_they_return_and_raise(name):
    text, function = text_of(name), getattr(fubini, name)
    if not inspect.signature(function).parameters:
        assert text.startswith("Return ")  # a getter, in one line
        return
    assert ("Returns:\n" in text) == (
        inspect.signature(function).return_annotation not in (None, "None")
    )
    assert "Raises:\n" in text


@pytest.mark.parametrize(("name", "source"), SOURCES.items())
def test_methods_of_the_literature_name_it(name, source):
    assert source in " ".join(text_of(name).split())


@pytest.mark.parametrize("name", SHAPES)
def test_what_has_a_shape_says_so(name):
    assert re.search(r"\(\*?\w[\w.]*,[^()]*\)|\[\.\.\., n, n\]", text_of(name))


MODEL = """
import pennylane as qml, torch

def node(device):
    @qml.qnode(qml.device(device, wires=1))
    def circuit(inputs, w):
        qml.RX(inputs[..., 0] + w, wires=0)
        return [qml.expval(qml.Z(0))]
    return qml.qnn.TorchLayer(circuit, {"w": ()})

def build():
    return torch.nn.Sequential(torch.nn.Linear(3, 1), node("default.qubit"), node("default.mixed"), torch.nn.PReLU())

def with_inputs():
    return node("default.qubit"), torch.zeros(2, 1)

def circuit_alone():
    return node("default.qubit")

def needs(number):
    return None

nothing = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return str(path)


def test_check_says_what_runs_where(file):
    lines = check(f"{file}:build").splitlines()
    assert len(lines) == 4
    assert lines[0] == "0 (Linear, 4 parameters): Has a rule for its block of the Fisher matrix."
    assert "native engine runs the compiled circuit" in lines[1]
    assert "replace_torch_layers" in lines[1]
    assert "default.mixed is no noiseless state-vector simulator" in lines[2]
    assert "Has no rule" in lines[3]
    assert "compiled circuit" in check(f"{file}:with_inputs")
    assert "give --inputs" in check(f"{file}:circuit_alone")
    assert "compiled circuit" in check(f"{file}:circuit_alone", (4, 1))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("model.py", "expected FILE.py:NAME"),
        ("{file}:missing", "expected 'missing'"),
        ("{file}.py:build", "expected the file"),
        ("{file}:needs", "a function without arguments"),
        ("{file}:nothing", "a torch.nn.Module"),
    ],
)
def test_check_says_what_is_wrong(file, target, message):
    with pytest.raises((TypeError, ValueError), match=message):
        check(target.format(file=file))
    with pytest.raises(ValueError, match="inputs: expected that the model takes them"):
        check(f"{file}:build", (2, 7))


def test_check_command(file, capsys):
    assert main(["check", f"{file}:circuit_alone", "--inputs", "4,1"]) == 0
    assert "compiled circuit" in capsys.readouterr().out
    assert main(["check", f"{file}:missing"]) == 2
    assert "python -m fubini check: model: expected" in capsys.readouterr().err
