"""The table of what runs where: every case gives PennyLane's numbers and derivatives, and no class shrinks unseen."""

import sys
import warnings
from pathlib import Path

import pytest
import torch

import fubini

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs"))

import gates

CASES = gates.cases()
#: How many of each group are compiled; a number that falls is a regression, one that rises is to be written here.
EXPECTED = {
    "Gates": 70,
    "Adjoint gates": 49,
    "Controlled gates": 49,
    "Squares of gates": 49,
    "Square roots of gates": 44,
    "Templates": 67,
    "Channels, on default.mixed": 0,
    "Measurements": 21,
}


def test_there_are_as_many_cases_as_the_table_promises():
    assert list(CASES) == list(EXPECTED)
    assert sum(map(len, CASES.values())) >= 355


def values_and_gradient(found, w):
    """What a circuit returned as one tensor, and the derivative of a fixed combination of it."""
    parts = found if isinstance(found, (list, tuple)) else [found]
    flat = torch.cat([torch.as_tensor(part).reshape(-1).to(torch.float64) for part in parts])
    if flat.requires_grad:
        (flat * torch.linspace(1, 2, len(flat), dtype=torch.float64)).sum().backward()
    return flat.detach(), torch.zeros_like(w) if w.grad is None else w.grad


@pytest.mark.slow
@pytest.mark.parametrize("group", CASES)
def test_every_case_is_right(group):
    kinds = []
    for name, case in CASES[group].items():
        torch.manual_seed(0)
        layer = fubini.QuantumLayer(case.qnode(), {"w": 20}).double()
        kind, _ = case.classify(layer)
        kinds.append(kind)
        assert kind not in (gates.REFUSED, gates.NOWHERE) or name in REFUSED, name
        if kind not in (gates.COMPILED, gates.EVERY_CALL):
            continue  # PennyLane's device made the numbers
        start = layer.w.detach().clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if (group, name) in WITHOUT_DERIVATIVE:
                start.requires_grad_(False)
                layer.w.requires_grad_(False)
            ours = values_and_gradient(layer(), layer.w)
            theirs = values_and_gradient(layer.qnode(start), start)
        for mine, other in zip(ours, theirs, strict=True):
            # Rounding of a few dozen gates, both in float64.
            assert (mine - other).abs().max() < 1e-10, name
    assert kinds.count(gates.COMPILED) == EXPECTED[group]


#: PennyLane has no decomposition of these powers and templates for trainable angles; counts are no numbers.
REFUSED = {
    *("CRot", "PSWAP", "Rot", "U2", "U3", "HilbertSchmidt", "LocalHilbertSchmidt"),
    *("SumOfSlatersPrep", "counts"),
}
#: PennyLane computes these for angles that are no parameters alone.
WITHOUT_DERIVATIVE = {
    ("Templates", "IQP"),
    *(
        ("Square roots of gates", f"{kind}Excitation{sign}")
        for kind in ("Single", "Double")
        for sign in ("Minus", "Plus")
    ),
    ("Square roots of gates", "OrbitalRotation"),
}
