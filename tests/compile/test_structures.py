"""Hybrid models as people write them: the same numbers as TorchLayer, and compiled."""

import copy
import logging
from typing import Any

import pennylane as qml
import pytest
import torch

import fubini
import structures_circuits
import structures_habits
import structures_models
import structures_styles
from structures import STRUCTURES, Structure

assert all((structures_circuits, structures_habits, structures_models, structures_styles))
# Values and gradients: the rounding of circuits of a few dozen gates, times what a model's own layers amplify.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}


def both(case: Structure, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The model with TorchLayer and with ours, with equal parameters."""
    torch.manual_seed(1)
    theirs = case.make(qml.qnn.TorchLayer).to(dtype)
    ours = case.make(fubini.QuantumLayer).to(dtype)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    return theirs, ours


def numbers(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, then the gradients of a weighted sum of it by parameters and inputs."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    out = model(x)
    (
        out * torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype).reshape(out.shape)
    ).sum().backward()
    assert x.grad is not None
    # A weight that nothing uses has a gradient of zero or none.
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return [out.detach(), *grads, x.grad]


def samples(case: Structure, batch: int | None, dtype: torch.dtype) -> torch.Tensor:
    shape = case.shape if batch is None else (batch, *case.shape)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return (0.05 + 0.9 * x if case.positive else 2.4 * x - 1.2).to(dtype)


def ways(model: torch.nn.Module) -> dict[str, str]:
    """How each quantum layer runs: compiled, traced or device, with what it says."""
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, fubini.QuantumLayer):
            text = layer.explain()
            way = (
                "compiled"
                if "runs the compiled" in text
                else "traced"
                if "every call" in text
                else "device"
            )
            found[name] = f"{way}: {text}"
    return found


def check(case: Structure, dtype: torch.dtype, batches: Any) -> None:
    theirs, ours = both(case, dtype)
    for batch in batches:
        x = samples(case, batch, dtype)
        expected, found = numbers(theirs, x), numbers(ours, x)
        assert len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    how = ways(ours)
    assert how
    assert all(text.startswith(case.way) for text in how.values()), how


@pytest.mark.parametrize("name", STRUCTURES)
def test_numbers_and_way(name: str) -> None:
    case = STRUCTURES[name]
    check(case, torch.float64, [2, *[None] * case.single])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", STRUCTURES)
def test_all_batches_and_types(name: str, dtype: torch.dtype) -> None:
    case = STRUCTURES[name]
    check(case, dtype, [7, 1, 2, *[None] * case.single])


def test_a_logger_that_begins_to_log() -> None:
    """Compiled while nothing is logged at debug level; later every call logs, as without compilation."""
    logger = logging.getLogger("structures.quiet")

    def circuit(inputs: Any, weights: Any) -> Any:
        logger.debug("weights of shape %s", weights.shape)
        if logger.isEnabledFor(logging.INFO):
            qml.X(0)
        qml.RX(inputs[..., 0] * weights, 0)
        return qml.expval(qml.Z(0))

    node = qml.QNode(circuit, qml.device("default.qubit", wires=1))
    layer = fubini.QuantumLayer(node, {"weights": 1})
    x = torch.rand(3, 1)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        quiet = layer(x)
        torch.testing.assert_close(layer(x), quiet)
        assert "compiled" in layer.explain()
        logger.setLevel(logging.INFO)
        torch.testing.assert_close(layer(x), -quiet)
        logger.setLevel(logging.DEBUG)
        torch.testing.assert_close(layer(x), -quiet)
        before = len(said)
        layer(x)
        assert len(said) > before > 0
        assert "it logs" in layer.explain()
        logger.setLevel(logging.NOTSET)
        torch.testing.assert_close(layer(x), quiet)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
