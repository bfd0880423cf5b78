"""The torch side of fubini: layer and optimizer."""

from fubini.torch.layer import QuantumLayer as QuantumLayer
from fubini.torch.optimizer import QNGOptimizer as QNGOptimizer
