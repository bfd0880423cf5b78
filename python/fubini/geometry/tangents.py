r"""The tangents of a circuit's state by its weights, with Hermitian operators among them.

For :math:`|\psi(w)\rangle`, the projector :math:`P = 1 - |\psi\rangle\langle\psi|` and operators :math:`O_m`, a
:class:`Tangents` holds :math:`P|\partial_j\psi\rangle` and :math:`-iPO_m|\psi\rangle` as real vectors, real parts first, in one
frame (a unitary of the engine's choice, common to all of one weight vector). An operator is a tangent like any other: the
derivative of :math:`e^{-itO}` behind the circuit at t = 0. From them follow, for a Hamiltonian :math:`H = O_m`,

* the Fubini-Study metric :math:`g = TT^T`,
* :math:`b = T h` with :math:`h = -iPH|\psi\rangle`, the right-hand side of McLachlan's principle in real time,
* the gradient of the energy, :math:`2\,\mathrm{Re}\langle\partial_j\psi|H|\psi\rangle`,
* the variance :math:`|h|^2`, and covariances of several operators.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fubini import _core
from fubini.arrays import hermitian
from fubini.circuit.jacobian import Jacobian
from fubini.geometry.ansatz import Ansatz
from fubini.geometry.operators import Terms
from fubini.native.circuit import Circuit
from fubini.native.measurements import Measurement
from fubini.native.program import gates_of
from fubini.options import Complex, Real
from fubini.runtime import check_fits

_FEWER = "use fewer weight vectors at a time, or fewer operators"


@dataclass(frozen=True, eq=False)
class Tangents:
    """Projected tangents at B weight vectors; N amplitudes, P weights, M operators.

    Attributes:
        weights: By the weights, (B, P, 2 N).
        operators: Of the operators, -i (O - <O>)|psi>, (B, M, 2 N).
    """

    weights: Real
    operators: Real

    def metric(self) -> Real:
        """Return the Fubini-Study metric over the weights, (B, P, P)."""
        return hermitian(self.weights @ self.weights.transpose(0, 2, 1))


def times_minus_i(vectors: Real) -> Real:
    """Return -i v of vectors (..., 2 N) whose real parts come first: -P O|psi> of an operator's tangent -i P O|psi>."""
    half = vectors.shape[-1] // 2
    return np.concatenate([vectors[..., half:], -vectors[..., :half]], axis=-1)


def tangents(ansatz: Ansatz, weights: Real, operators: Sequence[Terms] = ()) -> Tangents:
    """Return the tangents of a circuit's state, of weights and of operators behind the circuit, in one call of the kernel.

    Args:
        ansatz: The circuit.
        weights: (B, P), finite.
        operators: M Hermitian operators as words, see ``operators.terms_of``.

    Returns:
        The tangents.

    Raises:
        MemoryError: If they are larger than the bound.
    """
    circuit = ansatz.circuit
    jacobian = ansatz.jacobian(weights)
    batch, count, extra = len(weights), circuit.num_angles, len(operators)
    width = 2 << circuit.num_wires
    rows = len(jacobian.rows) + extra
    check_fits(
        f"{rows} tangents of {batch} states of {circuit.num_wires} qubits",
        2.0 * batch * width * rows,
        _FEWER,
    )
    angles = np.zeros((batch, count + extra))
    angles[:, :count] = ansatz.angles(weights)
    program = _known(circuit, operators, _extended) if extra else circuit.program
    columns = [*jacobian.rows.tolist(), *range(count, count + extra)]
    found = _core.metric_factor(program, angles, ansatz.initial, columns)
    every = found.reshape(rows, batch, width).transpose(1, 0, 2)
    if batch > 1:  # a factor of the mean metric
        every = every * np.sqrt(batch)
    own = every[:, : rows - extra]
    return Tangents(_pulled(jacobian, own), every[:, rows - extra :])


def _pulled(jacobian: Jacobian, vectors: Real) -> Real:
    """Derivatives by the weights (B, P, d) of what has the derivatives (B, k, d) by the angles of a Jacobian."""
    columns, coefficients = jacobian.columns, jacobian.coefficients
    if columns is None or coefficients is None:
        result: Real = jacobian.values.transpose(0, 2, 1) @ vectors
        return result
    if not (coefficients == 1.0).all():
        vectors = vectors * coefficients[:, :, None]
    if len(columns) == jacobian.size and (columns == np.arange(jacobian.size)).all():
        return vectors
    result = np.zeros((len(vectors), jacobian.size, vectors.shape[-1]))
    if jacobian.shared:
        for row, column in enumerate(columns):
            result[:, column] += vectors[:, row]
    else:
        result[:, columns] = vectors
    return result


# Programs of circuits with operators, by the identity of the circuit and of the words: these take long to hash. What is
# kept here keeps them alive.
_programs: "OrderedDict[tuple[int, ...], tuple[Any, ...]]" = OrderedDict()
_REMEMBERED = 64


def _known(
    circuit: Circuit,
    operators: Sequence[Terms],
    make: Callable[[Circuit, Sequence[Terms]], _core.Program],
) -> _core.Program:
    key = (id(make), id(circuit), *map(id, operators))
    found = _programs.get(key)
    if found is None:
        found = _programs[key] = (make(circuit, operators), circuit, *operators)
        while len(_programs) > _REMEMBERED:
            _programs.popitem(last=False)
    program: _core.Program = found[0]
    return program


def _extended(circuit: Circuit, operators: Sequence[Terms]) -> _core.Program:
    """The program with exp(-i t_m O_m) behind it, whose words may stand in any order at t = 0; the t come last."""
    builder = gates_of(circuit.structure, more=len(operators))
    for number, terms in enumerate(operators, circuit.num_angles):
        for word, wires, coefficient in terms:
            if word:  # the identity moves the phase alone
                place = number, 2.0 * coefficient, 0.0
                builder.pauli_rotation(word, list(wires), [], [], False, place)
    return builder.build()


def states(ansatz: Ansatz, weights: Real) -> Complex:
    """Return the states (B, N) at weights (B, P), as ``Circuit.state`` does."""
    circuit = ansatz.circuit
    return _core.state(
        circuit.program, np.ascontiguousarray(ansatz.angles(weights)), ansatz.initial
    )


def expectations(ansatz: Ansatz, weights: Real, operators: Sequence[Terms]) -> Real:
    """Return the expectation values (B, M) of M operators at weights (B, P)."""
    if not operators:
        return np.zeros((len(weights), 0))
    program = _known(ansatz.circuit, operators, _measuring)
    return _core.expval(program, np.ascontiguousarray(ansatz.angles(weights)), ansatz.initial)


def _measuring(circuit: Circuit, operators: Sequence[Terms]) -> _core.Program:
    measured = tuple(Measurement("expval", terms=terms) for terms in operators)
    return Circuit(replace(circuit.structure, measurements=measured)).program
