"""The curvature of an energy as a block: a matrix and its products, with damping against negative eigenvalues."""

import numpy as np
import pytest
import torch

from fubini import NumericalError
from fubini.blocks import DenseBlock, OperatorBlock
from fubini.blocks.curvature import CurvatureBlock


def test_blocks_of_matrices_and_products_are_the_same():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(9, 9))
    matrix = torch.tensor((matrix + matrix.T) / 2)
    parameters = [torch.zeros(4), torch.zeros(5)]
    rhs = torch.tensor(rng.normal(size=9))
    blocks = [
        CurvatureBlock(inner, True)
        for inner in (
            DenseBlock(parameters, matrix),
            OperatorBlock(parameters, lambda v: matrix @ v),
        )
    ]
    lowest = np.linalg.eigvalsh(matrix.numpy())[0]
    for block in blocks:
        assert block.lowest == pytest.approx(lowest, rel=1e-7)
        x, info = block.solve(rhs, 0.1)
        damped = matrix.numpy() - 2 * lowest * np.eye(9)
        np.testing.assert_allclose(x, np.linalg.solve(damped, rhs.numpy()), rtol=1e-6, atol=1e-8)
        assert "raised" in info.method
        enough = -1.2 * lowest
        x, info = block.solve(rhs, torch.full((9,), enough, dtype=torch.float64))
        damped = matrix.numpy() + enough * np.eye(9)
        np.testing.assert_allclose(x, np.linalg.solve(damped, rhs.numpy()), rtol=1e-7, atol=1e-8)
        assert "raised" not in info.method
        part = block.restrict([False, True])
        torch.testing.assert_close(part.dense(), matrix[4:, 4:])
        torch.testing.assert_close(block.scaled(-2.0).dense(), -2.0 * matrix)
        assert block.still() is None
        assert bool((block.diagonal() >= 0).all())
        again = block.with_tensors(block.tensors())
        torch.testing.assert_close(again.dense(), matrix)
        block.shifts = False
        with pytest.raises(NumericalError):
            block.solve(rhs, 0.1)
    definite = CurvatureBlock(DenseBlock(parameters, matrix @ matrix), True)
    assert definite.lowest == 0.0
    assert "raised" not in definite.solve(rhs, 0.1)[1].method
