"""The exceptions that fubini raises besides ``ValueError`` and ``TypeError``."""


class UnsupportedCircuitError(ValueError):
    """A circuit, device or measurement for which no right answer can be given; names it and the remedy."""


class NumericalError(ArithmeticError, ValueError):
    """Numbers without an answer (singular systems, NaN); names where they are, what is wrong, and the remedy."""
