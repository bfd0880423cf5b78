"""Metric blocks against dense linear algebra."""

from collections.abc import Callable

import pytest
import torch

import fubini
from fubini.blocks import (
    Block,
    DenseBlock,
    DiagonalBlock,
    FactorBlock,
    KroneckerBlock,
    OperatorBlock,
)
from fubini.blocks import kronecker as kronecker_module

Tensor = torch.Tensor


def spd(*shape: int, seed: int = 0, rank: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(
        *shape, rank or shape[-1] + 1, dtype=torch.float64, generator=generator
    )  # (..., n, r)
    return x @ x.mT / x.shape[-1]


def parameters(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]


def diagonal() -> Block:
    return DiagonalBlock(parameters((2, 3), (4,)), torch.arange(1.0, 11.0).double(), "diagonal")


def dense() -> Block:
    return DenseBlock(parameters((2, 3), (4,)), spd(10), "dense")


def parted() -> Block:
    matrix = torch.block_diag(spd(3), spd(3, seed=1), spd(4), torch.zeros(1, 1))
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    return DenseBlock(parameters((7,), (4,)), matrix[order][:, order], "parted")


def kronecker() -> Block:
    return KroneckerBlock(parameters((3, 4), (3,)), spd(1, 3), spd(1, 5, rank=2), (4, 1), "linear")


def grouped() -> Block:
    return KroneckerBlock(parameters((4, 3), (4,)), spd(2, 2), spd(2, 4), (3, 1), "grouped")


def embedding() -> Block:
    left = torch.tensor([[0.5, 0.0, 0.25, 0.25]], dtype=torch.float64)
    return KroneckerBlock(parameters((4, 3)), left, spd(1, 3), (3,), "embedding")


def factor() -> Block:
    x = torch.randn(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return FactorBlock(parameters((2, 3), (4,)), x, "factor")


def operator() -> Block:
    matrix = spd(10)
    return OperatorBlock(parameters((2, 3), (4,)), lambda v: matrix @ v, "operator")


def preconditioned() -> Block:
    matrix = spd(10) + torch.diag(torch.logspace(0, 4, 10).double())
    return OperatorBlock(
        parameters((2, 3), (4,)), lambda v: matrix @ v, "operator", diagonal=matrix.diagonal
    )


KINDS = [
    diagonal,
    dense,
    parted,
    kronecker,
    grouped,
    embedding,
    factor,
    operator,
    preconditioned,
]
MAKERS = pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
Make = Callable[[], Block]


def right_hand_side(n: int, *columns: int) -> Tensor:
    return torch.randn(n, *columns, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


@MAKERS
def test_products_are_those_of_the_matrix(make: Make) -> None:
    block = make()
    matrix = block.dense()
    assert torch.equal(matrix, matrix.mT) or torch.allclose(matrix, matrix.mT, rtol=1e-14)
    torch.testing.assert_close(block.diagonal(), matrix.diagonal(), rtol=1e-13, atol=0)
    for columns in [(), (2,)]:
        v = right_hand_side(block.size, *columns)
        torch.testing.assert_close(block.product(v), matrix @ v, rtol=1e-12, atol=1e-13)


def equal(block: Block) -> Tensor:
    return torch.full((block.size,), 0.3, dtype=torch.float64)


def per_parameter(block: Block) -> Tensor:
    values = [torch.full((p.numel(),), 0.1 * (i + 1)) for i, p in enumerate(block.parameters)]
    return torch.cat(values).double()


def proportional(block: Block) -> Tensor:
    return 0.2 * block.diagonal().clamp_min(1e-3)


def any_numbers(block: Block) -> Tensor:
    return torch.linspace(0.1, 1.0, block.size, dtype=torch.float64)


@MAKERS
@pytest.mark.parametrize("damp", [equal, per_parameter, proportional, any_numbers])
@pytest.mark.parametrize("columns", [(), (2,)])
def test_solutions_are_those_of_the_damped_matrix(
    make: Make, damp: Callable[[Block], Tensor], columns: tuple[int, ...]
) -> None:
    block = make()
    damping = damp(block)
    rhs = right_hand_side(block.size, *columns)
    x, info = block.solve(rhs, damping)
    damped = block.dense() + torch.diag(damping)
    # conditions up to 1e5; conjugate gradients stop at residuals of 1e-10
    torch.testing.assert_close(x, torch.linalg.solve(damped, rhs), rtol=1e-7, atol=1e-9)
    assert info.residual < 1e-9
    assert info.size == block.size
    if info.method == "cg":
        assert info.iterations > 0
    elif info.method in ("diagonal", "cholesky") or damp is equal:
        reference = float(torch.linalg.cond(damped))
        norm_equivalence = block.size  # between 1-norm and 2-norm
        assert reference / norm_equivalence <= info.condition * 1.01
        assert info.condition <= reference * norm_equivalence


def test_the_exact_solution_of_a_kronecker_block_forms_no_matrix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(kronecker_module, "DenseBlock")
    for block in (kronecker(), grouped(), embedding()):
        for damp in (equal, per_parameter, proportional):
            if block.label == "embedding" and damp is proportional:
                continue  # clamped, hence not proportional
            assert block.solve(right_hand_side(block.size), damp(block))[1].method == "eigen"


@pytest.mark.parametrize("make", [kronecker, embedding, factor, parted])
def test_singular_blocks_are_refused_without_damping(make: Make) -> None:
    block = make()
    with pytest.raises(
        fubini.NumericalError, match=f"{block.label}: .*singular.*lam = 0.*larger lam"
    ):
        block.solve(right_hand_side(block.size), torch.zeros(block.size).double())


@pytest.mark.parametrize("make", [dense, grouped, diagonal])
def test_regular_blocks_are_solved_without_damping(make: Make) -> None:
    block = make()
    rhs = right_hand_side(block.size)
    x, _ = block.solve(rhs, torch.zeros(block.size).double())
    torch.testing.assert_close(block.dense() @ x, rhs, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", [diagonal, dense, parted, factor])
def test_average_of_matrices(make: Make) -> None:
    block = make()
    # of a factor, the root
    factor = 3.0**0.5 if isinstance(block, FactorBlock) else 3.0
    other = block.with_tensors({name: factor * t for name, t in block.tensors().items()})
    average = block.average(other, 0.75)
    assert type(average) is type(block)
    torch.testing.assert_close(average.dense(), 1.5 * block.dense())


def test_average_of_kronecker_blocks_is_that_of_the_factors() -> None:
    block = kronecker()
    other = block.with_tensors({"left": spd(1, 3, seed=5), "right": spd(1, 5, seed=6)})
    average = block.average(other, 0.25)
    for name, values in average.tensors().items():
        expected = 0.25 * block.tensors()[name] + 0.75 * other.tensors()[name]
        assert torch.equal(values, expected)


def test_average_of_factors_never_has_more_rows_than_columns() -> None:
    block = average = factor()
    for _ in range(5):
        average = average.average(block, 0.5)
    assert len(average.tensors()["factor"]) == block.size
    torch.testing.assert_close(average.dense(), block.dense())


def test_misfits_are_refused() -> None:
    block = dense()
    with pytest.raises(ValueError, match="expected a DenseBlock of the same parameters"):
        block.average(dense(), 0.5)
    with pytest.raises(ValueError, match="operator: a metric known by its products"):
        operator().average(operator(), 0.5)
    with pytest.raises(ValueError, match=r"matrix: expected a tensor of shape \(6, 6\), got"):
        DenseBlock(parameters((2, 3)), spd(5))
    with pytest.raises(ValueError, match=r"columns: expected parameters of \[12, 3\] entries"):
        KroneckerBlock(parameters((3, 4), (4,)), spd(1, 3), spd(1, 5), (4, 1))
    with pytest.raises(ValueError, match="keep: expected 2 booleans, at least one of them true"):
        block.restrict([False, False])
    with pytest.raises(ValueError, match="parameters: expected at least one"):
        DenseBlock([], spd(5))


@MAKERS
def test_restriction_is_the_sub_matrix(make: Make) -> None:
    block = make()
    sizes = [p.numel() for p in block.parameters]
    for i in range(len(sizes)):
        part = block.restrict([k == i for k in range(len(sizes))])
        span = slice(sum(sizes[:i]), sum(sizes[: i + 1]))
        assert part.parameters == block.parameters[i : i + 1]
        torch.testing.assert_close(part.dense(), block.dense()[span, span], rtol=1e-13, atol=1e-13)


@MAKERS
def test_tensors_give_the_block_back(make: Make) -> None:
    block = make()
    again = block.with_tensors({name: t.clone() for name, t in block.tensors().items()})
    assert torch.equal(again.dense(), block.dense())
    assert all(t.dtype == torch.float64 for t in block.tensors().values())


def test_conjugate_gradients_that_stop_early_are_an_error() -> None:
    matrix = spd(50)
    block = OperatorBlock(parameters((50,)), lambda v: matrix @ v, "slow", max_iterations=2)
    with pytest.raises(fubini.NumericalError, match="slow: conjugate gradients stopped after 2"):
        block.solve(right_hand_side(50), torch.full((50,), 1e-6).double())
