"""A tuple of measurements is arranged as by the installed PennyLane's TorchLayer."""

from collections.abc import Iterator
from typing import Any

import pennylane as qml
import pytest
import torch

import fubini
from fubini.nn.forms import tuples_are_stacked


def circuit(inputs: Any, w: Any) -> Any:
    qml.RX(inputs[..., 0], 0)
    qml.CRY(w[0], [0, 1])
    return qml.expval(qml.Z(0)), qml.expval(qml.Z(1)), qml.expval(qml.X(1))


@pytest.fixture
def asked_anew() -> Iterator[None]:
    tuples_are_stacked.cache_clear()
    yield
    tuples_are_stacked.cache_clear()


SHAPES = [(1,), (5, 1), (1, 1), (3, 4, 1)]


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("engine", ["auto", "device"])
@pytest.mark.parametrize("shape", SHAPES)
def test_tuple_is_arranged_as_by_the_installed_torch_layer(shape: Any, engine: Any) -> None:
    qnode = qml.QNode(circuit, qml.device("default.qubit", wires=2))
    theirs = qml.qnn.TorchLayer(qnode, {"w": (1,)}).double()
    ours = fubini.QuantumLayer(qnode, {"w": (1,)}, {"w": theirs.w.detach()}, engine=engine).double()
    x = torch.rand(shape, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)


class SideBySide(qml.qnn.TorchLayer):  # type: ignore[misc]
    """A TorchLayer that arranges tuples as it arranges lists: (batch, measurements)."""

    def _evaluate_qnode(self, x: Any) -> Any:
        results = super()._evaluate_qnode(x)
        return torch.cat(results, dim=-1) if isinstance(results, tuple) else results


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("device", ["default.qubit", "lightning.qubit"])
@pytest.mark.parametrize("engine", ["auto", "device"])
@pytest.mark.parametrize("shape", SHAPES)
def test_tuple_side_by_side(
    shape: Any, engine: Any, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qml.qnn, "TorchLayer", SideBySide)
    qnode = qml.QNode(circuit, qml.device(device, wires=2))
    ours = fubini.QuantumLayer(qnode, {"w": (1,)}, {"w": torch.tensor([0.3])}, engine=engine)
    x = torch.rand(shape, dtype=torch.float64)
    result = ours.double()(x)
    assert result.shape == (*shape[:-1], 3)
    # <Z0> = cos(x)
    torch.testing.assert_close(result[..., 0], torch.cos(x[..., 0]), rtol=0, atol=1e-6)
