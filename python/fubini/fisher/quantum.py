"""The rule of quantum layers in a Fisher pass."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from fubini import _core
from fubini.arrays import to_numpy
from fubini.circuit.pauli import applied
from fubini.errors import UnsupportedCircuitError
from fubini.fisher.calls import Call
from fubini.metric.points import at_inputs
from fubini.native.circuit import Circuit
from fubini.native.measurements import Measurement, masked
from fubini.native.metric import observable_covariances
from fubini.nn.layer import QuantumLayer
from fubini.nn.linearise import Linearised, flat_weights, linearise, trace
from fubini.nn.stand_in import as_native
from fubini.options import Approx, Complex, LayerRule, Real

Tensor = torch.Tensor

# Entries of an array of amplitudes that is made at once.
_CHUNK = 1 << 24


class QuantumCall(Call):
    """``fubini.QuantumLayer`` and ``qml.qnn.TorchLayer``.

    Args:
        module: As for Call.
        name: As for Call.
        inputs: As for Call.
        alone: Whether the quantum function gets inputs one by one, as vectors, instead of a batch.
    """

    names = ()  # each layer has its own
    #: The results at the inputs, and their derivatives.
    linear: Linearised

    def __init__(self, module: Any, name: str, inputs: Tensor, alone: bool = False) -> None:
        self.alone = alone
        super().__init__(module, name, inputs)

    @classmethod
    def parameters_of(cls, module: Any) -> dict[str, Tensor]:
        """Return the layer's weights by name."""
        return dict(module.qnode_weights)

    @classmethod
    def cast(cls, module: Any, inputs: Tensor) -> Tensor:
        """Return the inputs: a circuit takes any precision."""
        return inputs

    @classmethod
    def at(
        cls, module: Any, name: str, inputs: Tensor, linear: Linearised, alone: bool
    ) -> QuantumCall:
        """Return a call whose results and derivatives are known; it has no ``outputs``.

        Args:
            module: As for Call.
            name: As for Call.
            inputs: (L, d).
            linear: The results and derivatives at the inputs.
            alone: As for QuantumCall.
        """
        call = cls.__new__(cls)
        call.module, call.name, call.inputs, call.linear = module, name, inputs, linear
        call.alone = alone
        call.parameters = cls.parameters_of(module)
        return call

    def _evaluate(self, x: Tensor) -> Tensor:
        flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        self.linear = linearise(self.module, flat, self.inputs.requires_grad, alone=self.alone)
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        values = torch.from_numpy(self.linear.values).to(x.device, dtype)
        lead, parts = x.shape[:-1], self.linear.parts
        if parts > 1:
            vectors = torch.chunk(values, parts, dim=1)
            return torch.stack([v.reshape(*lead, -1) for v in vectors])
        return values.reshape(lead if parts == 0 else (*lead, -1))

    def fits(self, data: int) -> bool:
        """Whether the inputs may hold so many data, see Call."""
        return len(self.linear.values) % data == 0

    # Jacobians are NumPy arrays; so are the products with them, which are small and many.

    def pull(self, g: Tensor) -> Tensor:
        """Return the cotangents of the inputs, see Call."""
        assert self.linear.by_inputs is not None
        pulled = self.flat(g).transpose(1, 0, 2) @ self.linear.by_inputs
        result = torch.from_numpy(pulled.transpose(1, 0, 2)).to(g.device, self.inputs.dtype)
        return result.reshape(len(g), *self.inputs.shape)

    def by_data(self, g: Tensor, data: int) -> Tensor:
        """Return cotangents datum by datum, see Call: outputs may have other axes first."""
        return torch.from_numpy(self.flat(g)).reshape(len(g), data, -1)

    def flat(self, g: Tensor) -> Real:
        """Return the cotangents of the results side by side, (K, L, M).

        Args:
            g: (K, *outputs.shape).
        """
        lead = self.inputs.ndim - 1
        if g.ndim == lead + 3:  # (K, parts, *lead, M / parts)
            g = g.movedim(1, -2)
        return to_numpy(g).reshape(len(g), *self.linear.values.shape)

    def rows(self, g: Tensor, data: int, part: slice) -> dict[str, Tensor]:
        """Return the derivatives by the parameters, see Call."""
        jacobian = self._by_weights(data)[part]
        cotangents = self.flat(g).reshape(len(g), data, -1)[:, part]
        joint = torch.from_numpy((cotangents.transpose(1, 0, 2) @ jacobian).transpose(1, 0, 2))
        sizes = [w.numel() for w in self.parameters.values()]
        return dict(
            zip(self.parameters, torch.split(joint.to(g.device), sizes, dim=2), strict=True)
        )

    def gram(self, g: Tensor, data: int, names: tuple[str, ...]) -> Tensor | None:
        """Return the sum of the outer products of all rows, see Call."""
        if names != tuple(self.parameters):
            return None
        jacobian = self._by_weights(data)
        cotangents = self.flat(g).reshape(len(g), data, -1).transpose(1, 0, 2)
        if len(g) > cotangents.shape[2]:  # more cotangents than results
            left, right = jacobian, (cotangents.transpose(0, 2, 1) @ cotangents) @ jacobian
        else:
            left = right = cotangents @ jacobian
        size = jacobian.shape[2]
        product = left.reshape(-1, size).T @ right.reshape(-1, size)
        return torch.from_numpy(product).to(g.device)

    def curvature_factor(self, g: Tensor, before: Real | None) -> Real:
        """Return F (L, rows, M) with the loss's curvature by the layer's results ``B = F^T F``.

        Args:
            g: (K, *outputs.shape), columns of a factor.
            before: The factor for the columns before these.
        """
        factor = self.flat(g).transpose(1, 0, 2)
        if before is not None:
            factor = np.concatenate([before, factor], axis=1)
            if factor.shape[1] > factor.shape[2]:
                factor = np.asarray(np.linalg.qr(factor, mode="r"))
        return factor

    def bound(self, factor: Real) -> Real:
        """Return s (L,) with ``J^T B J <= 4 s g`` at each input: the largest eigenvalue of ``B^1/2 C B^1/2``.

        C is the covariance of the layer's observables, ``Re<O_k O_l> - <O_k><O_l>``. The derivative of <O_k> by v is
        Re<a, b_k> with a = 2 (d_v psi) without its part along psi, |a|^2 = 4 v^T g v, and b_k = (O_k - <O_k>) psi, whose
        Gram matrix is C.

        Args:
            factor: F with ``B = F^T F``, (L, rows, M).
        """
        return _core.largest_eigenvalues(np.ascontiguousarray(factor), self._covariances())

    def _covariances(self) -> Real:
        """C of every input, (L, M, M)."""
        inputs = self._flat_inputs()
        each = inputs if self.alone else [inputs]
        return np.concatenate([_covariances(self.module, x) for x in each])

    def weighted_metric(self, weights: Real, approx: Approx, layers: LayerRule) -> Real:
        """Return the sum over the inputs of the layer's Fubini-Study metrics, each times a number, (P, P).

        Args:
            weights: One number for each input.
            approx: Which part of the metric over angles to take.
            layers: Which gates form a block.
        """
        layer = as_native(self.module) or self.module
        inputs = self._flat_inputs()
        if not self.alone:
            return _weighted(layer, inputs, weights, approx, layers)
        each = [
            _weighted(layer, x, weights[k : k + 1], approx, layers) for k, x in enumerate(inputs)
        ]
        return np.asarray(sum(each))

    def _flat_inputs(self) -> Tensor:
        """(L, d)."""
        x = self.inputs.detach()
        return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])

    def _by_weights(self, data: int) -> Real:
        """(D, T M, P)."""
        jacobian = self.linear.by_weights
        return jacobian.reshape(data, -1, jacobian.shape[2])


def _weighted(
    layer: QuantumLayer, inputs: Tensor, weights: Real, approx: Approx, layers: LayerRule
) -> Real:
    """The sum of a layer's metrics, each times a number, at inputs (L, d), or (d,) for one."""
    point = at_inputs(layer, inputs)
    if point.pullback is not None:
        return point.pullback.weighted_sum(weights, approx, layers)
    metrics = point.metric(approx, layers, None)
    each = np.broadcast_to(metrics, (len(weights), *metrics.shape[-2:]))
    return np.tensordot(weights, each, 1)


def _covariances(layer: Any, inputs: Tensor) -> Real:
    """``Re<O_k O_l> - <O_k><O_l>`` of the results' observables, (L, M, M), at inputs (L, d) or (d,)."""
    native = as_native(layer)
    if native is None:
        raise UnsupportedCircuitError(
            "quantum: 'fubini-study' needs a layer on the native engine to scale its metric; this one runs on its device. "
            "Use quantum='gauss-newton' (metric='fisher')"
        )
    form = native.compiled(inputs)
    if form is None:
        circuit, torch_angles, torch_state = trace(native, inputs)
        angles = to_numpy(torch_angles)
        states = None if torch_state is None else to_numpy(torch_state, np.complex128)
    else:
        weights, x = [flat_weights(native)], np.atleast_2d(to_numpy(inputs))
        circuit, states = form.circuit, form.states(weights, x)
        angles = form.angles(weights, x)
    return covariances(circuit, angles, states)


def covariances(circuit: Circuit, angles: Real, states: Complex | None) -> Real:
    """Return ``Re<O_k O_l> - <O_k><O_l>`` of the results' observables, (L, M, M).

    Args:
        circuit: The circuit.
        angles: (L, A).
        states: Initial states (L, N), if it takes any.

    Raises:
        UnsupportedCircuitError: If it measures variances.
    """
    if any(m.kind == "var" for m in circuit.structure.measurements):
        raise UnsupportedCircuitError(
            "quantum: 'fubini-study' has no scale for a layer that measures variances, which are not linear in the state; "
            "use quantum='gauss-newton' (metric='fisher')"
        )
    found = observable_covariances(circuit, angles, states)
    if found is not None:
        return found
    # (O_k - <O_k>) psi for all results k, real and imaginary parts side by side, for parts of the inputs.
    measurements, size, parts = circuit.structure.measurements, 2**circuit.num_wires, []
    count = max(1, _CHUNK // (size * circuit.num_outputs))
    for start in range(0, len(angles), count):
        chunk = slice(start, start + count)
        psi = _core.state(circuit.program, angles[chunk], None if states is None else states[chunk])
        columns = [_applied(m, psi, circuit.num_wires) for m in measurements]
        applied = np.concatenate(columns, axis=1)  # (L, M, N)
        means = (applied @ psi.conj()[:, :, None]).real
        shifted = applied - means * psi[:, None, :]
        both = np.concatenate([shifted.real, shifted.imag], axis=2)
        parts.append(both @ both.transpose(0, 2, 1))
    return np.concatenate(parts)


def _applied(measurement: Measurement, psi: Complex, num_wires: int) -> Complex:
    """The measurement's observables applied to states (L, N): (L, columns, N)."""
    if measurement.kind != "probs":
        return applied(masked(measurement, num_wires), psi)[:, None, :]
    index = np.arange(psi.shape[1])
    wires = measurement.wires
    bits = [index >> (num_wires - 1 - w) & 1 for w in wires]
    value = sum((b << (len(bits) - 1 - k) for k, b in enumerate(bits)), np.zeros_like(index))
    masks: Complex = (value == np.arange(2 ** len(wires))[:, None]).astype(complex)
    return masks * psi[:, None, :]
