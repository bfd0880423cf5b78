"""From a quantum function to a circuit whose angles are expressions of its arguments."""
