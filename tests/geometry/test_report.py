"""fubini.report: against explicit computations with PennyLane and torch, exact variances, and known barren plateaus."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from circuits import random_circuit
from fubini.geometry.report_model import model_of

Tensor = torch.Tensor


def qnode(function: Callable[..., Any], wires: int, device: str = "default.qubit") -> Any:
    return qml.QNode(function, qml.device(device, wires=wires))


def encoded(inputs: Any, w: Any) -> None:
    qml.AngleEmbedding(inputs, wires=range(2))
    qml.StronglyEntanglingLayers(w, wires=range(2))


def probabilities(inputs: Any, w: Any) -> Any:
    encoded(inputs, w)
    return qml.probs(wires=[0, 1])


def parity(inputs: Any, w: Any) -> Any:
    encoded(inputs, w)
    return qml.expval(qml.Z(0) @ qml.Z(1))


def several(inputs: Any, w: Any) -> Any:
    """Angles that are no affine function, results of every kind that has outcomes."""
    qml.AmplitudeEmbedding(inputs, wires=range(2), normalize=True)
    qml.RX(torch.sin(w[0, 0, 0]), 0)
    qml.StronglyEntanglingLayers(w, wires=range(2))
    return [
        qml.expval(-0.5 * qml.X(0)),
        qml.expval(qml.Projector([1], wires=1)),
        qml.probs(wires=0),
    ]


def energies(inputs: Any, w: Any) -> Any:
    encoded(torch.sin(w[0, 0, 0]) * inputs, w)
    return [qml.expval(qml.Z(0) + qml.X(1)), qml.var(qml.Z(1))]


def runs_in_every_call(inputs: Any, w: Any) -> Any:
    if float(w[0, 0, 0].detach()) > 3.0:
        qml.RX(w[0, 0, 1], 0)
    encoded(inputs, w)
    return qml.expval(qml.Z(0))


def jacobian(circuit: Any, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Results (M,) and derivatives (M, P) of one input, by PennyLane and torch alone."""

    def values(v: Tensor) -> Tensor:
        found = circuit(x, v)
        parts = found if isinstance(found, list | tuple) else [found]
        return torch.cat([p.reshape(-1) for p in parts])

    derivatives = torch.autograd.functional.jacobian(values, w)
    return values(w), derivatives.reshape(len(derivatives), -1)


def outcomes(pairs: list[tuple[float, float]]) -> Callable[[Tensor, Tensor], Tensor]:
    """Fisher information of outcomes with two values each, written out as probabilities."""

    def information(f: Tensor, j: Tensor) -> Tensor:
        total = torch.zeros(j.shape[1], j.shape[1], dtype=j.dtype)
        for k, (low, high) in enumerate(pairs):
            p = (f[k] - low) / (high - low)
            d = j[k] / (high - low)
            total += torch.outer(d, d) / p + torch.outer(d, d) / (1 - p)
        return total

    return information


def of_probabilities(f: Tensor, j: Tensor) -> Tensor:
    return sum(torch.outer(d, d) / p for p, d in zip(f, j, strict=True))  # type: ignore[return-value]


def of_several(f: Tensor, j: Tensor) -> Tensor:
    return outcomes([(-0.5, 0.5), (0.0, 1.0)])(f, j) + of_probabilities(f[2:], j[2:])


def of_softmax(f: Tensor, j: Tensor) -> Tensor:
    p = torch.softmax(f, 0)
    return j.T @ (torch.diag(p) - torch.outer(p, p)) @ j


CASES = [
    (probabilities, "auto", of_probabilities),
    (parity, "auto", outcomes([(-1.0, 1.0)])),
    (parity, "outcomes", outcomes([(-1.0, 1.0)])),
    (parity, "bernoulli", lambda f, j: j.T @ j * torch.sigmoid(f[0]) * torch.sigmoid(-f[0])),
    (several, "auto", of_several),
    (energies, "auto", lambda f, j: 2 * j.T @ j),
    (energies, torch.nn.CrossEntropyLoss(), of_softmax),
    (runs_in_every_call, "auto", outcomes([(-1.0, 1.0)])),
]


@pytest.mark.parametrize(("function", "likelihood", "information"), CASES)
def test_everything_is_what_an_explicit_computation_gives(
    function: Any, likelihood: Any, information: Any
) -> None:
    """Fisher information, effective dimension and gradient variance, from PennyLane's derivatives one by one."""
    rng = torch.Generator().manual_seed(3)
    features = 4 if function is several else 2
    x = torch.randn(3, features, generator=rng, dtype=torch.float64)
    circuit = qnode(function, 2)
    draws, shape = 4, (1, 2, 3)
    found = fubini.report(circuit, x, weights={"w": shape}, likelihood=likelihood, draws=draws)
    drawn = model_of(circuit, x, {"w": shape}).draws(draws, 0)
    assert ((drawn >= 0) & (drawn < 2 * np.pi)).all()
    assert np.ptp(drawn, axis=0).all()

    fishers, jacobians, signs = [], [], []
    for row in drawn:
        pairs = [jacobian(circuit, one, torch.from_numpy(row).reshape(shape)) for one in x]
        fishers.append(sum(information(f, j) for f, j in pairs) / len(x))  # type: ignore[arg-type]
        jacobians.append(torch.stack([j for _, j in pairs]))
        signs.append(torch.stack([f for f, _ in pairs]).min())
    expected = torch.stack(fishers).numpy()
    np.testing.assert_allclose(found.fisher, expected, atol=1e-9 * expected.max(), rtol=0)
    if function is parity:
        assert min(signs) < 0  # what must not be dropped

    n, size = 500, 6
    kappa = n / (2 * np.pi * np.log(n))
    hat = expected * size / np.trace(expected, axis1=1, axis2=2).mean()
    volumes = [np.sqrt(np.linalg.det(np.eye(size) + kappa * f)) for f in hat]
    dimension = 2 * np.log(np.mean(volumes)) / np.log(kappa)
    assert found.effective_dimension(n) == pytest.approx(dimension, abs=1e-8)
    assert fubini.effective_dimension(expected, n) == pytest.approx(dimension, abs=1e-8)

    variance = torch.stack(jacobians).var(dim=0).mean(dim=0).numpy()
    np.testing.assert_allclose(found.gradients.each, variance, atol=1e-10)
    assert found.gradients.mean == pytest.approx(variance[variance > 1e-20].mean())
    np.testing.assert_allclose(
        found.metrics[1],
        fubini.metric_tensor(circuit, reduce="mean", argnums=1, joint=True)(
            x, torch.from_numpy(drawn[1]).reshape(shape)
        ),
        atol=1e-10,
    )


@pytest.mark.parametrize("seed", range(4))
def test_random_circuits_with_another_name_for_the_data(seed: int) -> None:
    """Gates of the whole table, angles of every kind, some weights in several gates."""
    drawn = random_circuit(seed, shared=seed % 2 == 0)

    def function(x: Any, weights: Any) -> Any:
        drawn.gates(x, weights)
        if seed < 2:
            return qml.probs(wires=[0, 1])
        return [qml.expval(qml.X(0) @ qml.Y(1)), qml.expval(-2.0 * qml.Z(1))]

    circuit = qnode(function, drawn.wires)
    x, _ = drawn.draw(seed, 2)
    model = model_of(circuit, x, {"weights": (drawn.weights,)})
    weights = model.draws(2, seed)
    ((results, derivatives),) = list(model.linearised(weights))
    information = of_probabilities if seed < 2 else outcomes([(-1.0, 1.0), (-2.0, 2.0)])
    found = fubini.report(circuit, x, weights={"weights": (drawn.weights,)}, draws=2, seed=seed)
    for t, row in enumerate(weights):
        pairs = [jacobian(circuit, one, torch.from_numpy(row)) for one in x]
        for k, (f, j) in enumerate(pairs):
            np.testing.assert_allclose(results[t, k], f, atol=1e-10)
            np.testing.assert_allclose(derivatives[t, k], j, atol=1e-10)
        expected = sum(information(f, j) for f, j in pairs) / len(x)  # type: ignore[operator]
        np.testing.assert_allclose(found.fisher[t], expected, atol=1e-8)


def test_effective_dimension_of_known_matrices() -> None:
    """A multiple of the identity: every direction counts the same, so d = P log(1 + kappa) / log(kappa)."""
    for n in (50, 1000, 1e6):
        kappa = 0.8 * n / (2 * np.pi * np.log(n))
        expected = 5 * np.log(1 + kappa) / np.log(kappa)
        found = fubini.effective_dimension(np.tile(3.0 * np.eye(5), (4, 1, 1)), n, gamma=0.8)
        assert found == pytest.approx(expected, rel=1e-12)
    # Rank one of P: 2 log sqrt(1 + kappa P) / log kappa; and matrices whose determinants overflow.
    one = np.zeros((1, 400, 400))
    one[0, 0, 0] = 1e-3
    kappa = 1e5 / (2 * np.pi * np.log(1e5))
    expected = np.log(1 + 400 * kappa) / np.log(kappa)
    assert fubini.effective_dimension(one, 1e5) == pytest.approx(expected, rel=1e-12)
    assert np.isfinite(fubini.effective_dimension(np.eye(400)[None], 1e12))


def test_redundant_and_idle_weights_are_found() -> None:
    def circuit(w: Any, unused: Any) -> Any:
        qml.RX(w[0], 0)
        qml.RX(w[1], 0)
        qml.RY(w[2], 0)
        qml.RZ(0.0 * unused, 0)
        return qml.expval(qml.Z(0))

    found = fubini.report(qnode(circuit, 1), weights={"w": 3, "unused": 1}, draws=30)
    assert (found.size, found.rank, found.inputs) == (4, 2, 0)
    assert set(found.redundant.tolist()) in ({0, 3}, {1, 3})
    assert found.idle.tolist() == [3]
    assert found.spectrum.rank == 2  # everywhere, not only at a point
    assert found.fisher_ranks.max() == 1  # one expectation value
    text = str(found)
    assert "rank 2 of 4, the same at 10 random weights" in text
    assert "idle      1: unused" in text
    assert "outcomes of observables with two eigenvalues" in text
    assert repr(found) == text


def test_over_parametrised_circuit_is_full_rank_on_average_only() -> None:
    """18 weights on 3 qubits: at most 2^4 - 2 = 14 directions at a point, more over all points."""

    def circuit(w: Any) -> Any:
        qml.StronglyEntanglingLayers(w, wires=range(3))
        return qml.expval(qml.Z(0))

    found = fubini.report(qnode(circuit, 3), weights={"w": (2, 3, 3)}, draws=10)
    assert found.rank <= 14
    assert found.spectrum.rank > found.rank
    assert len(found.redundant) == 18 - found.rank
    # Weights that the first layer's RZ on |0> do nothing with are idle everywhere.
    assert set(found.idle.tolist()) == {0, 3, 6}


# -- gradients --------------------------------------------------------------------------------------------------------


def product(observable: Callable[[int], Any]) -> Callable[[int], Any]:
    """RY on every qubit of |0...0>."""

    def family(n: int) -> Any:
        def circuit(w: Any) -> Any:
            for k in range(n):
                qml.RY(w[k], k)
            return qml.expval(observable(n))

        return qnode(circuit, n), {"w": (n,)}

    return family


def all_z(n: int) -> Any:
    return qml.prod(*(qml.Z(k) for k in range(n))) if n > 1 else qml.Z(0)


def mean_z(n: int) -> Any:
    return qml.dot([1.0 / n] * n, [qml.Z(k) for k in range(n)])


def test_variances_of_product_states_are_exact() -> None:
    """d<Z...Z>/dw_k = -sin w_k prod cos w_j has variance 2^-n; d<mean Z>/dw_k = -sin w_k / n has 1 / (2 n^2)."""
    sizes = (2, 3, 4, 5, 6)
    found = fubini.report(product(all_z), sizes=sizes, draws=4000).trend
    assert found is not None
    for n, v, error in zip(sizes, found.variances, found.errors, strict=True):
        assert abs(v - 2.0**-n) < 5 * error  # five standard errors
        assert error < 0.06 * v
    assert found.verdict == "exponential"
    assert found.misfit[0] < 4.0
    assert abs(found.rate - 1.0) < max(0.05, 4 * found.rate_error)
    local = fubini.report(product(mean_z), sizes=(2, 4, 6, 9), draws=400).trend
    assert local is not None
    np.testing.assert_allclose(local.variances, [1 / (2 * n**2) for n in (2, 4, 6, 9)], rtol=0.1)
    assert local.verdict == "polynomial"
    assert abs(local.power - 2.0) < 0.1


def hardware_efficient(depth: Callable[[int], int], observable: Callable[[int], Any]) -> Any:
    """RY(pi/4), then layers of RX, RY, RZ and a chain of CZ on the engine's device."""

    def family(n: int) -> Any:
        def circuit(w: Any) -> Any:
            for k in range(n):
                qml.RY(np.pi / 4, k)
            for layer in range(depth(n)):
                for k in range(n):
                    qml.RX(w[layer, k, 0], k)
                    qml.RY(w[layer, k, 1], k)
                for k in range(n - 1):
                    qml.CZ([k, k + 1])
            return qml.expval(observable(n))

        return fubini.QuantumLayer(qnode(circuit, n), {"w": (depth(n), n, 2)})

    return family


def global_projector(n: int) -> Any:
    return qml.Projector([0] * n, wires=range(n))


def local_z(n: int) -> Any:
    return qml.Z(0) @ qml.Z(1)


def plateau(sizes: tuple[int, ...], draws: int, depth: Callable[[int], int]) -> tuple[Any, Any]:
    deep = fubini.report(hardware_efficient(depth, global_projector), sizes=sizes, draws=draws)
    assert deep.trend is not None
    assert deep.trend.verdict == "exponential"
    assert deep.trend.rate > 1.0  # a global projector: 2^-2n for random states
    assert "a barren plateau" in str(deep)
    shallow = fubini.report(hardware_efficient(lambda n: 2, local_z), sizes=sizes, draws=draws)
    assert shallow.trend is not None
    # Small ones have their ends close to the observable, which looks like a slow decay.
    assert shallow.trend.verdict in ("flat", "polynomial")
    assert "no decay" in str(shallow) or "no barren plateau" in str(shallow)
    assert shallow.trend.rate < 0.4 < deep.trend.rate
    assert "pairs that do not depend on one another" in str(shallow)
    return deep.trend, shallow.trend


def test_barren_plateau_is_seen_and_a_shallow_local_circuit_has_none() -> None:
    plateau((2, 3, 4, 5, 6), 60, lambda n: n)


@pytest.mark.slow
def test_barren_plateau_up_to_twelve_qubits() -> None:
    deep, shallow = plateau((2, 4, 6, 8, 10, 12), 30, lambda n: n + 2)
    assert abs(deep.rate - 2.0) < 0.15  # of a projector in random states
    assert shallow.verdict == "flat"


# -- calls ------------------------------------------------------------------------------------------------------------


def test_layers_are_reported_on_as_they_are_and_left_alone() -> None:
    circuit = qnode(parity, 2)
    ours = fubini.QuantumLayer(circuit, {"w": (1, 2, 3)})
    theirs = qml.qnn.TorchLayer(circuit, {"w": (1, 2, 3)})
    with torch.no_grad():
        theirs.w.copy_(ours.w)
    x = torch.rand(2, 2, 2)
    before, state = ours.w.clone(), torch.get_rng_state()
    first, second = (fubini.report(one, x, draws=5, radius=0.3) for one in (ours, theirs))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(ours.w, before)
    assert first.inputs == 4
    np.testing.assert_array_equal(first.fisher, second.fisher)
    np.testing.assert_allclose(first.local_fisher, second.local_fisher, atol=1e-12)
    values = {"w": ours.w.detach()}
    third = fubini.report(fubini.compiled(circuit), x, weights=values, draws=5, radius=0.3)
    np.testing.assert_allclose(first.local_fisher, third.local_fisher, atol=1e-12)
    assert "local" in str(first)
    other = fubini.report(ours, x, draws=5, seed=1)
    assert not np.allclose(other.fisher, first.fisher)
    narrow = fubini.report(
        ours, x, draws=5, init_method=lambda w: torch.nn.init.normal_(w, std=0.01)
    )
    assert narrow.gradients.mean < 1e-3 < first.gradients.mean


def test_families_with_data_and_arguments_with_defaults() -> None:
    def family(n: int) -> Any:
        def circuit(x: Any, w: Any, scale: float = 0.5) -> Any:
            qml.AngleEmbedding(scale * x, wires=range(n))
            for k in range(n):
                qml.RY(w[k], k)
            return qml.expval(all_z(n))

        return qnode(circuit, n), {"w": (n,)}

    def data(n: int) -> Any:
        return np.random.default_rng(n).normal(size=(3, n))

    found = fubini.report(family, data, sizes=(3, 2), draws=20)
    assert found.trend is not None
    assert (found.wires, found.inputs, found.trend.sizes) == (3, 3, (2, 3))
    assert found.trend.verdict == "undecided"
    assert found.trend.variances[-1] == found.gradients.mean
    single, shapes = family(2)
    alone = fubini.report(single, data(2), weights=shapes, draws=20)
    assert found.trend.variances[0] == pytest.approx(alone.gradients.mean, rel=1e-12)


def test_local_effective_dimension_is_that_of_the_ball() -> None:
    layer = fubini.QuantumLayer(qnode(parity, 2), {"w": (1, 2, 3)})
    x = torch.rand(4, 2, dtype=torch.float64)
    found = fubini.report(layer, x, draws=50, radius=0.2)
    ball = model_of(layer, x, None).ball(2000, 0.2, 7)
    lengths = np.linalg.norm(ball - layer.w.detach().double().reshape(-1).numpy(), axis=1)
    assert lengths.max() < 0.2
    assert np.mean(lengths < 0.1) == pytest.approx(0.5**6, abs=0.01)  # uniform in six dimensions
    assert found.local_fisher is not None
    expected = fubini.effective_dimension(found.local_fisher, 300)
    assert found.effective_dimension(300, local=True) == expected
    assert fubini.report(layer, x, draws=2).radius == pytest.approx(1000**-0.5)


def test_results_that_never_move_have_no_fisher_information() -> None:
    def circuit(w: Any) -> Any:
        qml.RZ(w, 0)
        return qml.probs(wires=0)

    found = fubini.report(qnode(circuit, 1), weights={"w": 1}, draws=3)
    assert np.abs(found.fisher).max() < 1e-30
    assert "the results do not depend on the weights" in str(found)
    with pytest.raises(ValueError, match="the results do not depend on the weights"):
        found.effective_dimension()


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    x = torch.rand(3, 2, dtype=torch.float64)
    layer = fubini.QuantumLayer(qnode(parity, 2), {"w": (1, 2, 3)})
    one = fubini.report(layer, x, draws=5)
    figure = one.plot()
    assert len(figure.axes) == 4
    figure.savefig(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000
    by_size = fubini.report(product(all_z), sizes=(1, 2, 3), draws=5)
    titles = [axes.get_title() for axes in by_size.plot().axes]
    assert any(title.startswith("gradients: ") for title in titles)


def test_bad_arguments_are_named() -> None:
    circuit, shape = qnode(parity, 2), {"w": (1, 2, 3)}
    x = torch.rand(3, 2)

    def call(model: Any = circuit, inputs: Any = x, **options: Any) -> Any:
        return fubini.report(model, inputs, **{"weights": shape, **options})

    for options, error, message in [
        ({"weights": None}, TypeError, "weights: expected the shape or the values"),
        ({"weights": {"v": 1}}, ValueError, r"weights: expected one entry .*\['inputs', 'w'\]"),
        ({"inputs": None}, TypeError, "inputs: expected a tensor .*'inputs', got none"),
        ({"inputs": torch.tensor(1.0)}, ValueError, r"inputs: expected shape \(inputs, features\)"),
        ({"inputs": x * np.nan}, ValueError, "inputs: expected finite numbers"),
        ({"draws": 1}, ValueError, "draws: expected an integer of at least 2, got 1"),
        ({"data": 18}, ValueError, "data: expected so many .*19 or more"),
        ({"data": 100, "gamma": 0.1}, ValueError, "data: expected so many"),
        ({"gamma": 1.5}, ValueError, r"gamma: expected a number in \(0, 1\]"),
        ({"radius": -1.0}, ValueError, "radius: expected a finite number above 0"),
        ({"sizes": (2, 3)}, ValueError, "sizes: expected None for one circuit"),
        ({"likelihood": "normal"}, ValueError, "likelihood: expected 'categorical'.*'outcomes'"),
        ({"likelihood": torch.nn.L1Loss()}, TypeError, "likelihood: expected one of the losses"),
        (
            {"likelihood": torch.nn.BCEWithLogitsLoss(pos_weight=torch.ones(1))},
            ValueError,
            "likelihood: expected one whose Fisher information does not depend on labels",
        ),
        ({"model": torch.nn.Linear(1, 1)}, TypeError, "pass one of its quantum layers"),
        ({"model": parity}, ValueError, "weights: expected None for a family"),
        ({"model": parity, "weights": None}, ValueError, "sizes: expected numbers of qubits"),
        ({"weights": {"w": torch.full((1, 2, 3), np.inf)}}, ValueError, "w: expected finite"),
    ]:
        with pytest.raises(error, match=message):
            call(**options)
    with pytest.raises(ValueError, match="likelihood: 'outcomes' needs probabilities"):
        call(qnode(energies, 2), likelihood="outcomes")
    with pytest.raises(ValueError, match=r"fishers: expected shape \(draws, P, P\), got \(2, 2\)"):
        fubini.effective_dimension(np.eye(2), 100)
    with pytest.raises(ValueError, match="fishers: expected finite"):
        fubini.effective_dimension(np.full((1, 2, 2), np.nan), 100)
    with pytest.raises(TypeError, match="inputs: expected none for a circuit without data"):
        fubini.report(product(all_z)(2)[0], x, weights={"w": 2})
    with pytest.raises(ValueError, match="local: expected a report on weights with values"):
        call(draws=2).effective_dimension(local=True)


def test_what_does_not_fit_into_memory_is_refused_before() -> None:
    x = torch.rand(3, 2)
    before = fubini.get_memory_limit()
    fubini.set_memory_limit(1e4)
    try:
        with pytest.raises(
            MemoryError, match=r"100 Fisher matrices of 6 weights.*take fewer draws"
        ):
            fubini.report(qnode(parity, 2), x, weights={"w": (1, 2, 3)})
    finally:
        fubini.set_memory_limit(before)


def test_noise_and_states_are_refused_with_a_way_out() -> None:
    x, shape = torch.rand(3, 2), {"w": (1, 2, 3)}
    noisy = qml.set_shots(qnode(parity, 2), 10)
    with pytest.raises(fubini.UnsupportedCircuitError, match=r"got 10 shots.*'default.qubit'"):
        fubini.report(noisy, x, weights=shape)
    again = qml.QNode(noisy.func, qml.device("default.qubit"))  # the way out
    assert fubini.report(again, x, weights=shape, draws=2).size == 6
    with pytest.raises(fubini.UnsupportedCircuitError, match="a device of mixed states"):
        fubini.report(qnode(parity, 2, "default.mixed"), x, weights=shape)

    def state(inputs: Any, w: Any) -> Any:
        encoded(inputs, w)
        return qml.state()

    with pytest.raises(fubini.UnsupportedCircuitError, match=r"a circuit that returns its state"):
        fubini.report(qnode(state, 2), x, weights=shape)
