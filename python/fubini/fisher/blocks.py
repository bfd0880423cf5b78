"""The Fisher information of a hybrid model, as metric blocks of its parameters.

The Fisher information of the model's output distribution is the generalised Gauss-Newton matrix of the loss,
``sum_n J_n^T H_n J_n`` with the Jacobian J_n of datum n's outputs and the Hessian H_n of its loss terms; see
:mod:`fubini.fisher.likelihoods` for the conventions. ``H_n = S_n S_n^T`` in closed form, and each column of S is carried
back through the model for all data at once, so that a layer's block costs as many backward passes as there are outputs.

* Quantum layers: exact, through the Jacobian of the circuit's results.
* Linear, Conv1d, Conv2d, Embedding: exact up to 128 parameters, above that K-FAC, ``E[g g^T] kron E[a a^T]``, over all
  positions and uses (Martens and Grosse 2015, arXiv:1503.05671; for convolutions Grosse and Martens 2016,
  arXiv:1602.01407; for shared weights the "expand" form of Eschenhagen et al. 2023, arXiv:2311.00636).
* LayerNorm: exact up to 128 parameters, above that the exact diagonal. BatchNorm: the exact diagonal.

A datum is an entry of the first dimension of the model's output. Where the model mixes data (which is tested in every
pass), the whole batch is treated as one datum: right, at the cost of as many backward passes as there are
outputs in the batch. In the blocks of layers the statistics of batch norm in training mode count as constants, as is
usual for K-FAC; in the joint matrix they do not.

Small models that are chains of layers have a pass of their own, with the same result; see :mod:`fubini.fisher.chain`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from fubini.arrays import all_finite
from fubini.blocks import Block, DiagonalBlock
from fubini.errors import NumericalError
from fubini.fisher.accumulators import ExactUnit, FactorUnit, Unit
from fubini.fisher.calls import LeafCall
from fubini.fisher.chain import chain_blocks
from fubini.fisher.columns import Part, Request, Trace, accumulate, check_request, curvature
from fubini.fisher.graph_blocks import KnownGraphs
from fubini.fisher.kfac import Group, groups_of, unit_of
from fubini.fisher.losses import as_likelihood
from fubini.fisher.operator import fisher_operator
from fubini.fisher.quantum import QuantumCall
from fubini.fisher.repeat import Layout, is_open, repeated, survey
from fubini.fisher.rules import rule_for
from fubini.nn.surroundings import Seen, Surroundings, without_autocast
from fubini.options import Approx, LayerRule

Tensor = torch.Tensor

#: Joint matrices are made up to this many parameters.
DENSE_LIMIT = 4096
#: Entries up to which the factor X of a joint matrix X^T X is kept.
FACTOR_LIMIT = 1 << 26


def fisher_blocks(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    parameters: Sequence[Tensor],
    likelihood: Any,
    approx: Approx,
    fisher: Literal["true", "empirical"] = "true",
    targets: Any = None,
    quantum: Literal["gauss-newton", "fubini-study"] = "gauss-newton",
    layers: LayerRule = "wires",
    samples: int | None = None,
    fallback: Literal["diagonal", "identity"] | None = None,
) -> list[Block]:
    """Return the Fisher information of a model's parameters at these inputs, by a forward pass of its own.

    The model is left as it was: parameters, ``.grad``, buffers (also batch norm's statistics), training flags, hooks and
    the state of the random generators do not change. Layers act as in their present mode; dropout draws its masks from
    the global generators' present states, so a caller that sets them to their states before the user's forward pass
    gets the same masks, as the optimizer does. With ``samples`` the labels are drawn from torch's global generator, which moves on.

    Args:
        model: The model; it returns one tensor, data first. A ``DistributedDataParallel`` or compiled model stands for the
            module in it, and the blocks are those of this process's data.
        args: Positional arguments of the model.
        kwargs: Keyword arguments of the model.
        parameters: Parameters of the model, real, each once.
        likelihood: ``"categorical"``, ``"bernoulli"``, ``"gaussian"``, or an object of
            :mod:`fubini.fisher.likelihoods` for another reduction or scale.
        approx: ``"block-diag"``: a block for each layer (layers that share parameters have one together); ``"diag"``: the
            exact diagonal; None: the joint matrix over all parameters, as a matrix, as a factor where there are fewer
            outputs in the batch than parameters, or as its products with vectors where it is large.
        fisher: ``"true"``, the expectation over the model's own labels; ``"empirical"``, the labels of the data.
        targets: For the empirical Fisher: the loss's targets, or an ``OutputGradient``.
        quantum: ``"gauss-newton"``: quantum layers have the same metric as all others. ``"fubini-study"``: the
            Fubini-Study metric g, with the part of it that approx names, scaled input by input to the loss:
            ``G <= sum_x s(x) 4 g(x)``. It does not vanish where the measured results are stationary.
        layers: Which gates form a block of g, see :mod:`fubini.circuit.gate_layers`.
        samples: Draw so many labels for each term, in place of the closed form.
        fallback: For parameters without a rule: None raises an error; ``"diagonal"`` takes the exact diagonal, which
            costs as many backward passes as there are outputs in the batch; ``"identity"`` the identity matrix.

    Returns:
        Blocks that have every parameter once; a parameter without influence on the output has zeros.

    Raises:
        TypeError: If the model does not return a tensor; for parameters that are complex or sparse; for a parameter or layer
            without a rule.
        NumericalError: If an output of the model is not finite.
        UnsupportedCircuitError: If a quantum layer has no such metric.
        ValueError: If an argument is out of its range.
    """
    request = Request(
        as_likelihood(likelihood), fisher, targets, samples, quantum, layers, approx, fallback
    )
    check_request(request)
    with without_autocast(), torch.no_grad():
        surroundings = Surroundings.now(_unwrapped(model))
        return requested_blocks(
            model,
            [Seen(args, kwargs, surroundings, targets=targets)],
            parameters,
            request,
            KnownGraphs(),
        )


def requested_blocks(
    model: torch.nn.Module,
    seen: Sequence[Seen],
    parameters: Sequence[Tensor],
    request: Request,
    known: KnownGraphs,
) -> list[Block]:
    """Return what ``fisher_blocks`` returns, for several passes; to be called without autocast and without gradients.

    Passes are run again one by one, so that each has its own random numbers and batch statistics. For a loss with the mean
    reduction, the metric is that of the mean over the terms of all passes.

    Args:
        model: As there.
        seen: The passes, at least one.
        parameters: As there.
        request: The other arguments, checked; the passes have targets of their own.
        known: Graphs that were met before.

    Raises:
        RuntimeError: If a pass cannot be repeated.
    """
    if not parameters:
        return []
    inner = _unwrapped(model)

    def without_graph(request: Request) -> list[Block]:
        found = chain_blocks(inner, seen, parameters, request)
        if found is not None:
            return found
        layout = survey(inner)
        _check_parameters(parameters, layout.names)
        return _blocks(layout, seen, parameters, request)

    return known.blocks(inner, seen, parameters, request, without_graph)


def _blocks(
    layout: Layout, seen: Sequence[Seen], parameters: Sequence[Tensor], request: Request
) -> list[Block]:
    names, approx, fallback = layout.names, request.approx, request.fallback
    trace = _traced(layout, seen, parameters, request)
    groups = groups_of(layout, parameters, trace)
    strangers = _without(parameters, groups)
    if strangers and approx is not None and fallback is None:
        raise TypeError(_no_rule(layout, strangers, trace))
    if approx is None:
        return _joint(layout, seen, trace, parameters, groups, request)
    units = [unit_of(group, trace, request) for group in groups]
    accumulate(trace, units, request)
    blocks = [unit.block() for unit in units]
    if strangers and fallback == "identity":
        for p in strangers:
            ones = torch.ones(p.numel(), dtype=torch.float64, device=p.device)
            blocks.append(DiagonalBlock([p], ones, names[id(p)]))
    elif strangers:
        # A parameter that is used outside of its layer has calls of the layer as well.
        calls = [*trace.calls, *(LeafCall(p, "", p) for p in strangers)]
        others = [ExactUnit([p], names[id(p)], calls, diagonal=True) for p in strangers]
        accumulate(trace, others, request, strangers, joined=True)
        blocks += [unit.block() for unit in others]
    return blocks


def _traced(
    layout: Layout, seen: Sequence[Seen], parameters: Sequence[Tensor], request: Request
) -> Trace:
    """All passes, run again."""
    found = []
    for one in seen:
        again = repeated(layout, one, parameters, fixed_statistics=request.approx is not None)
        if request.quantum == "fubini-study" and again.uncut:
            raise TypeError(
                f"{min(again.uncut)}: expected a quantum layer whose weights are parameters of its own and whose forward is not "
                "replaced, for quantum='fubini-study'; use quantum='gauss-newton' (metric='fisher')"
            )
        f = again.output.detach()
        if not f.numel():
            raise ValueError(
                f"model: expected outputs for at least one input, got the shape {tuple(f.shape)}"
            )
        if not all_finite(f):
            raise NumericalError("model: expected finite outputs, got NaN or infinity")
        likelihood = request.likelihood.at(f, one.targets)
        count = likelihood.counts(f)[0]
        data = count if again.independent(count) else 1
        found.append(Part(again, data, count, likelihood, one.targets, 1.0))
    if len(found) == 1 or request.likelihood.reduction == "sum":
        return Trace(found)
    sizes = [part.likelihood.size(part.run.output) for part in found]
    total = sum(sizes)
    return Trace(
        [replace(part, weight=size / total) for part, size in zip(found, sizes, strict=True)]
    )


def _without(parameters: Sequence[Tensor], groups: Sequence[Group]) -> list[Tensor]:
    """Those parameters that no group has."""
    ruled = {i for group in groups for i in group.parameters}
    return [p for p in parameters if id(p) not in ruled]


# -- the joint matrix -----------------------------------------------------------------------------------------------


def _joint(
    layout: Layout,
    seen: Sequence[Seen],
    trace: Trace,
    parameters: Sequence[Tensor],
    groups: Sequence[Group],
    request: Request,
) -> list[Block]:
    """One block over all parameters, in the order given; with Fubini-Study metrics, quantum layers have their own."""
    scaled: list[Unit] = []
    if request.quantum == "fubini-study":
        quantum = [g for g in groups if any(issubclass(k, QuantumCall) for k in g.kinds)]
        scaled = [unit_of(group, trace, request) for group in quantum]
    apart = {id(p) for unit in scaled for p in unit.parameters}
    joint = [p for p in parameters if id(p) not in apart]
    size = sum(p.numel() for p in joint)
    rows = 0
    for part in trace.parts:
        count, terms, outputs = part.likelihood.counts(part.run.output)
        drawn = terms * outputs if request.samples is None else request.samples
        rows += count * (terms if request.fisher == "empirical" else drawn)
    strangers = _without(joint, groups)
    calls = [*trace.calls, *(LeafCall(p, "", p) for p in strangers)]
    units = list(scaled)
    if rows < size and rows <= DENSE_LIMIT and rows * size <= FACTOR_LIMIT:
        units.append(FactorUnit(joint, "model", calls))
    elif 0 < size <= DENSE_LIMIT:
        units.append(ExactUnit(joint, "model", calls))
    elif joint:
        # Conjugate gradients gain by the diagonal, which is cheap where data are independent.
        diagonal = ExactUnit(joint, "model", calls, diagonal=True)
        known = trace.independent and not strangers
        accumulate(trace, [*scaled, *([diagonal] if known else [])], request)
        operator = fisher_operator(
            layout,
            seen,
            joint,
            [curvature(part, request) for part in trace.parts],
            diagonal.block().diagonal() if known else None,
        )
        return [*(unit.block() for unit in scaled), operator]
    accumulate(trace, units, request, strangers, joined=bool(strangers))
    return [unit.block() for unit in units]


# -- checks -----------------------------------------------------------------------------------------------------------


def _check_parameters(parameters: Sequence[Tensor], names: Mapping[int, str]) -> None:
    """Refuse parameters that are not the model's, come twice, or are complex or sparse."""
    seen: set[int] = set()
    for k, p in enumerate(parameters):
        if id(p) not in names:
            raise ValueError(
                f"parameters: expected parameters of the model, got one of shape {tuple(p.shape)} at {k} that it does "
                "not have"
            )
        name = names[id(p)]
        if id(p) in seen:
            raise ValueError(f"parameters: expected every parameter once, got {name} twice")
        seen.add(id(p))
        if p.is_complex():
            raise TypeError(
                f"{name}: expected a real parameter, got {p.dtype}; use torch.view_as_real"
            )
        if p.layout is not torch.strided:
            raise TypeError(f"{name}: expected a dense parameter, got the layout {p.layout}")


def _no_rule(layout: Layout, strangers: Sequence[Tensor], trace: Trace) -> str:
    """What to say about parameters without a rule."""
    remedy = "use approx=None (the joint matrix), fallback='diagonal' or fallback='identity', or give it to another optimizer"
    for p in strangers:
        for part in trace.parts:
            if id(p) in part.run.uncalled:
                return f"{layout.names[id(p)]}: {part.run.uncalled[id(p)]}; or {remedy}"
    homes: dict[int, torch.nn.Module] = {}
    for module in layout.model.modules():
        for owned in module._parameters.values():
            homes.setdefault(id(owned), module)
    # What computes a weight says more than what is left of the layer.
    for p in sorted(strangers, key=lambda p: not _is_parametrization(homes[id(p)])):
        home = homes[id(p)]
        if rule_for(home) is None or not is_open(home):
            computes = ", which computes another layer's" if _is_parametrization(home) else ""
            return (
                f"{layout.names[id(p)]}: expected a parameter of a layer with a rule for its Fisher block, got one of "
                f"{type(home).__name__}{computes}; {remedy}"
            )
    return (
        f"{layout.names[id(strangers[0])]}: expected a parameter that only its layer uses, and whose layer has parameters for "
        "weights, got one that the model also uses outside of the layer's forward, or a layer whose weights are computed "
        f"(by a hook, as pruning does, or another network); {remedy}"
    )


def _is_parametrization(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.utils.parametrize.ParametrizationList)


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The module in a parallel or compiled one."""
    parallel: Any = torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel
    inner: Any = model
    while inner is not None:
        model = inner
        inner = model.module if isinstance(model, parallel) else getattr(model, "_orig_mod", None)
    return model
