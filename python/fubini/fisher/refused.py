"""Parameters that have no Fisher block, and what to say about them."""

from collections.abc import Mapping, Sequence

import torch

from fubini.fisher.columns import Trace
from fubini.fisher.passes import Layout, is_open
from fubini.fisher.rules import rule_for

Tensor = torch.Tensor


def check_parameters(parameters: Sequence[Tensor], names: Mapping[int, str]) -> None:
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


def no_rule(layout: Layout, strangers: Sequence[Tensor], trace: Trace) -> str:
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
                f"{title(home)}{computes}; {remedy}"
            )
    return (
        f"{layout.names[id(strangers[0])]}: expected a parameter that only its layer uses, and whose layer has parameters for "
        "weights, got one that the model also uses outside of the layer's forward, or a layer whose weights are computed "
        f"(by a hook, as pruning does, or another network); {remedy}"
    )


def title(module: torch.nn.Module) -> str:
    """Return what a layer without a name is called."""
    return type(module).__name__


def _is_parametrization(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.utils.parametrize.ParametrizationList)
