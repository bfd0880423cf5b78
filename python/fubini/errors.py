"""The exceptions that fubini raises besides ``ValueError`` and ``TypeError``."""

from pennylane.exceptions import QuantumFunctionError


class UnsupportedCircuitError(ValueError):
    """A circuit, device or measurement for which no right answer can be given; names it and the remedy.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=1))
        ... def circuit(w):
        ...     qml.RX(w, wires=0)
        ...     return qml.vn_entropy(wires=0)
        >>> try:
        ...     fubini.Circuit.from_qnode(circuit, torch.tensor(0.3))
        ... except fubini.UnsupportedCircuitError as error:
        ...     print(str(error).split(":")[0])
        vnentropy
    """


class NumericalError(ArithmeticError, ValueError):
    """Numbers without an answer (singular systems, NaN); names where they are, what is wrong, and the remedy.

    Example:
        >>> import fubini, numpy as np
        >>> try:
        ...     fubini.solve(np.array([[np.nan]]), np.ones(1))
        ... except fubini.NumericalError as error:
        ...     print(error)
        solve: The matrix, the right-hand side or the solution contains NaN or infinity; look for the first operation that produced it, a smaller learning rate often helps.
    """


class NoTrainableParametersError(QuantumFunctionError, ValueError):  # type: ignore[misc]
    """Nothing to differentiate by; PennyLane raises a QuantumFunctionError for that."""
