"""Metric blocks: the symmetric positive semi-definite metric of some parameters, in the form that is cheapest to solve.

A block belongs to one or more parameters, flattened and concatenated in order; all vectors have that layout. Its numbers
are float64 on the parameters' device, whatever the parameters' dtype. Blocks are values: every operation returns a new
one.
"""

from fubini.torch.blocks.base import Block as Block
from fubini.torch.blocks.base import BlockInfo as BlockInfo
from fubini.torch.blocks.kronecker import KroneckerBlock as KroneckerBlock
from fubini.torch.blocks.matrix import DenseBlock as DenseBlock
from fubini.torch.blocks.matrix import DiagonalBlock as DiagonalBlock
from fubini.torch.blocks.noisy import NoisyBlock as NoisyBlock
from fubini.torch.blocks.products import FactorBlock as FactorBlock
from fubini.torch.blocks.products import OperatorBlock as OperatorBlock
