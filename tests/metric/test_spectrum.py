"""MetricSpectrum: rank, redundant weights and effective dimension of metrics that are known; and the picture."""

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini


def strongly_entangling(inputs: Any, w: Any, unused: Any) -> Any:
    qml.AngleEmbedding(inputs, wires=range(3))
    qml.StronglyEntanglingLayers(w, wires=range(3))
    qml.RX(0.0 * unused, 0)
    return qml.expval(qml.Z(0))


def layer() -> fubini.QuantumLayer:
    qnode = qml.QNode(strongly_entangling, qml.device("default.qubit", wires=3))
    return fubini.QuantumLayer(qnode, {"w": (2, 3, 3), "unused": 1}).double()


def test_over_parametrised_circuit() -> None:
    """One input's metric on n qubits has rank 2^(n+1) - 2 at most; 18 weights reach 14."""
    spectrum = fubini.metric_spectrum(layer())(torch.rand(3, dtype=torch.float64))
    assert spectrum.rank == 14
    assert spectrum.effective_dimension() == 14
    assert 0 < spectrum.effective_dimension(1e-2) < spectrum.effective_dimension(1e-3) < 14
    assert len(spectrum.redundant) == 5
    assert spectrum.labels[spectrum.idle[0]] == "unused"
    assert len(spectrum.idle) == 1
    kept = np.setdiff1d(np.arange(19), spectrum.redundant)
    assert np.linalg.matrix_rank(spectrum.matrix[np.ix_(kept, kept)], tol=1e-10) == 14
    assert spectrum.condition == pytest.approx(spectrum.eigenvalues[0] / spectrum.eigenvalues[13])
    text = repr(spectrum)
    assert "19 weights, rank 14" in text
    assert "idle              1: unused" in text
    assert "w[" in text


def test_rotations_about_one_axis_are_redundant() -> None:
    @qml.qnode(qml.device("default.qubit", wires=1))
    def circuit(w: Any) -> Any:
        qml.RX(w[0], 0)
        qml.RX(w[1], 0)
        qml.RY(w[2], 0)
        return qml.state()

    w = torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64, requires_grad=True)
    spectrum = fubini.metric_spectrum(circuit)(w)
    assert spectrum.rank == 2
    assert spectrum.redundant.tolist() in ([0], [1])
    assert spectrum.labels == ("w[0]", "w[1]", "w[2]")
    np.testing.assert_allclose(
        spectrum.eigenvectors * spectrum.eigenvalues @ spectrum.eigenvectors.T,
        spectrum.matrix,
        atol=1e-14,
    )


def test_known_matrices() -> None:
    spectrum = fubini.MetricSpectrum.of_matrix(np.diag([4.0, 0.0, 1.0]))
    assert spectrum.eigenvalues.tolist() == [4.0, 1.0, 0.0]
    assert (spectrum.rank, spectrum.condition) == (2, 4.0)
    assert spectrum.effective_dimension(1.0) == pytest.approx(0.8 + 0.5)
    assert spectrum.redundant.tolist() == spectrum.idle.tolist() == [1]
    assert fubini.MetricSpectrum.of_matrix(np.diag([4.0, 0.0, 1.0]), rcond=0.3).rank == 1
    zero = fubini.MetricSpectrum.of_matrix(torch.zeros(2, 2))
    assert (zero.rank, zero.condition) == (0, np.inf)
    assert zero.redundant.tolist() == [0, 1]
    assert "rank 0" in repr(zero)
    assert repr(fubini.MetricSpectrum.of_matrix(np.zeros((0, 0)))) == "MetricSpectrum(no weights)"
    rounded = torch.diag(torch.tensor([1.0, 1e-9], dtype=torch.float32))
    assert fubini.MetricSpectrum.of_matrix(rounded).rank == 1


def test_spectrum_of_an_operator_and_of_arguments() -> None:
    one = layer()
    x = torch.rand(4, 3, dtype=torch.float64)
    direct = fubini.metric_spectrum(one)(x)
    operator = fubini.metric_operator(one, "matrix-free")(x)
    np.testing.assert_allclose(
        fubini.MetricSpectrum.of_matrix(operator).eigenvalues, direct.eigenvalues, atol=1e-14
    )
    measured = fubini.metric_spectrum(one, engine="device")(x)
    np.testing.assert_allclose(measured.eigenvalues, direct.eigenvalues, atol=1e-12)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((2, 3)), r"matrix: expected shape \(P, P\), got \(2, 3\)"),
        (np.array([[1.0, 2.0], [0.0, 1.0]]), "matrix: expected a symmetric one"),
        (np.array([[np.nan]]), r"matrix: expected finite numbers, got nan at matrix\[0, 0\]"),
    ],
)
def test_bad_matrices(matrix: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fubini.MetricSpectrum.of_matrix(matrix)
    with pytest.raises(ValueError, match=r"labels: expected 1, one for each weight, got 2"):
        fubini.MetricSpectrum.of_matrix(np.eye(1), ["a", "b"])
    with pytest.raises(ValueError, match="lam: expected a finite number >= 0"):
        fubini.MetricSpectrum.of_matrix(np.eye(1)).effective_dimension(-1.0)


# -- the picture ----------------------------------------------------------------------------------------------------


def test_picture_has_entries_eigenvalues_and_rank(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    spectrum = fubini.metric_spectrum(layer())(torch.rand(3, dtype=torch.float64))
    figure = fubini.plot_metric(spectrum)
    heat, _, values = sorted(figure.axes, key=lambda axis: axis.get_position().x0)[:3]
    (image,) = heat.get_images()
    np.testing.assert_array_equal(np.asarray(image.get_array()), spectrum.matrix)
    assert [t.get_text() for t in heat.get_yticklabels()] == list(spectrum.labels)
    shown = np.sort(np.concatenate([line.get_ydata() for line in values.get_lines()[:1]]))[::-1]
    np.testing.assert_allclose(shown, spectrum.eigenvalues[:14])
    assert "19 weights, rank 14" in figure.get_suptitle()
    figure.savefig(tmp_path / "metric.png")
    assert (tmp_path / "metric.png").stat().st_size > 10_000


def test_pictures_of_tensors_operators_and_zero() -> None:
    pytest.importorskip("matplotlib")
    one = layer()
    x = torch.rand(4, 3, dtype=torch.float64)
    of_w, _ = fubini.metric_tensor(one, reduce="mean")(x)
    figure = fubini.plot_metric(of_w)
    assert "18 weights" in figure.get_suptitle()
    figure = fubini.plot_metric(fubini.metric_operator(one)(x), title="mine")
    assert figure.get_suptitle() == "mine"
    fubini.plot_metric(np.zeros((30, 30)))


def test_missing_matplotlib_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [n for n in sys.modules if n.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="plot_metric: it needs matplotlib; install it"):
        fubini.plot_metric(np.eye(2))
