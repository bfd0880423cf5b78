"""The exceptions that fubini raises besides ``ValueError`` and ``TypeError``."""

from pennylane.exceptions import QuantumFunctionError


class UnsupportedCircuitError(ValueError):
    """A circuit, device or measurement for which no right answer can be given; names it and the remedy."""


class NumericalError(ArithmeticError, ValueError):
    """Numbers without an answer (singular systems, NaN); names where they are, what is wrong, and the remedy."""


class NoTrainableParametersError(QuantumFunctionError, ValueError):  # type: ignore[misc]
    """Nothing to differentiate by; PennyLane raises a QuantumFunctionError for that."""
