"""Every public name has an example in its docstring, and it runs."""

import doctest
import inspect
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch

import fubini
from fubini.__main__ import main
from fubini.demo.check import check

mpl.use("agg")


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
