"""What the tangents of a circuit give besides a step of an optimizer: evolution in time, growing, diagnosis."""
