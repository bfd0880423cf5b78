"""Metric blocks: the symmetric positive semi-definite metric of some parameters, in the form that is cheapest to solve.

A block belongs to one or more parameters, flattened and concatenated in order; all vectors have that layout. Its numbers
are float64 on the parameters' device, whatever the parameters' dtype. Blocks are values: every operation returns a new
one.
"""

from fubini.blocks.base import Block as Block
from fubini.blocks.base import BlockInfo as BlockInfo
from fubini.blocks.base import averaged as averaged
from fubini.blocks.kronecker import KroneckerBlock as KroneckerBlock
from fubini.blocks.matrix import DenseBlock as DenseBlock
from fubini.blocks.matrix import DiagonalBlock as DiagonalBlock
from fubini.blocks.noisy import NoisyBlock as NoisyBlock
from fubini.blocks.products import FactorBlock as FactorBlock
from fubini.blocks.products import OperatorBlock as OperatorBlock
