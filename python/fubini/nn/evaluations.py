"""What quantum layers evaluate: the inputs and weights that a QNode really sees, and the layers that own a parameter.

A layer is recorded where it evaluates its circuit, not where it is called: a subclass may transform its inputs, scale its
outputs or evaluate several times. Every evaluation gets its weights through a mark of its own, a view of the weight. All that
a loss takes from the evaluation reaches the weights through these marks, also where only derivatives of the outputs enter
the loss, and whatever was done to the outputs.
"""

import gc
import math
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pennylane.qnn import TorchLayer

from fubini.compile.compiled import Compiled
from fubini.nn.recorder import Pass, PassRecorder
from fubini.nn.roles import leaves_of
from fubini.nn.shot_noise import ShotNoise
from fubini.nn.surroundings import versions_of
from fubini.torch_private import is_wrapped, uncompiled, unwrapped, without_transforms

Tensor = torch.Tensor

#: Attribute of a TorchLayer with the QuantumLayer by which it evaluates, and of that QuantumLayer.
STAND_IN, STANDS_IN = "_fubini_layer", "_fubini_stands_in"
_live: "weakref.WeakSet[Any]" = weakref.WeakSet()


@dataclass(eq=False)
class Evaluation(Pass):
    """One evaluation of a circuit. Its only argument are the inputs, (features,) or (batch, features).

    Attributes:
        single: Whether the function was called with one input without a batch dimension; ``args`` may have several of
            them, of calls under ``vmap``.
        compiled: The circuit that evaluated it, where that was compiled.
        values: Weights that are computed from parameters of the layer, as they were seen, by name.
        jacobians: Their derivatives by these parameters, (entries of the weight, entries of the parameter).
    """

    single: bool = False
    compiled: Compiled | None = None
    values: dict[str, Tensor] = field(default_factory=dict)
    jacobians: dict[str, dict[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def rows(self) -> Tensor:
        """The inputs, (count, features)."""
        inputs: Tensor = self.args[0]
        return inputs.reshape(math.prod(inputs.shape[:-1]), inputs.shape[-1])


class EvaluationRecorder(PassRecorder):
    """Records the evaluations of one layer.

    Attributes:
        keeps_noise: Whether the noise of gradients from shots is kept with the passes.
        known: Identities of the layer's own weights; all others are kept as they were seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.keeps_noise = False
        self.known: set[int] = set()

    def begin(self, inputs: Tensor, weights: dict[str, Tensor]) -> Evaluation | None:
        """Take note of an evaluation.

        Args:
            inputs: (features,) or (batch, features).
            weights: By name; those to use take their places.

        Returns:
            The evaluation, None where it is not recorded.
        """
        if not self._active or self.paused or not torch.is_grad_enabled():
            return None
        moving = {n: w for n, w in weights.items() if w.requires_grad and not is_wrapped(w)}
        leaves = {n: leaves_of(w, self._watched) for n, w in moving.items()}
        parameters = list(dict.fromkeys(p for found in leaves.values() for p in found))
        if not parameters:
            return None
        versions = versions_of(p for p in [*weights.values(), *parameters] if p.is_leaf)
        rows = without_graph(inputs)
        count = math.prod(rows.shape[:-1])
        seen = Evaluation((rows,), {}, versions, parameters, count, single=inputs.ndim == 1)
        for name, weight in weights.items():
            if not self._is_own(weight, leaves.get(name, ())):
                seen.values[name] = without_graph(weight)
                seen.jacobians[name] = {}
        for name, found in leaves.items():
            if found:
                weights[name] = self.mark(weights[name], seen, found, seen.jacobians.get(name))
        return seen

    def close(self, seen: Evaluation, how: Any, noise: ShotNoise | None) -> None:
        """Take note of how an evaluation ran, and of the noise of its gradients.

        Args:
            seen: What ``begin`` returned.
            how: Of the layer's form.
            noise: Of a layer with shots.
        """
        if isinstance(how, Compiled):
            seen.compiled = how
        if self.keeps_noise and noise is not None:
            seen.noise = noise
            noise.wanted = True

    def _is_own(self, weight: Tensor, leaves: Sequence[Tensor]) -> bool:
        """Whether a weight is one of the layer's own, or its copy in another dtype."""
        if id(weight) in self.known:
            return True
        return len(leaves) == 1 and id(leaves[0]) in self.known and _is_same(weight, leaves[0])


class TorchLayerHook:
    """Records the evaluations of a ``qml.qnn.TorchLayer``: while its forward runs, its QNode is one that reports.

    Args:
        recorder: The recorder.
    """

    def __init__(self, recorder: EvaluationRecorder) -> None:
        self._recorder = recorder
        self._plain: list[Any] = []  # the QNodes of calls that are not over

    @uncompiled
    def before(self, module: Any, args: tuple[Any, ...]) -> None:
        """Put the QNode in; a forward pre-hook."""
        self._plain.append(module.__dict__["qnode"])
        module.__dict__["qnode"] = _ReportingQNode(self._plain[-1], module, self._recorder)

    @uncompiled
    def after(self, module: Any, *_: Any) -> None:
        """Put the layer's own QNode back; a forward hook that is always called."""
        if self._plain:
            module.__dict__["qnode"] = self._plain.pop()


class _ReportingQNode:
    """A QNode whose evaluations are recorded."""

    def __init__(self, qnode: Any, module: Any, recorder: EvaluationRecorder) -> None:
        self._fubini = qnode, tuple(module.qnode_weights), module.input_arg, recorder

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._fubini[0])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._fubini[0], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        qnode, names, input_arg, recorder = self._fubini
        inputs = kwargs.get(input_arg)
        if not args and isinstance(inputs, Tensor):
            weights = {n: kwargs[n] for n in names if n in kwargs}
            recorder.begin(inputs, weights)
            kwargs.update(weights)
        return qnode(*args, **kwargs)


def record_layer(layer: Any, owner: Any) -> EvaluationRecorder:
    """Record a layer's evaluations for as long as the owner lives.

    Args:
        layer: A ``QuantumLayer`` or ``qml.qnn.TorchLayer``.
        owner: The optimizer.

    Returns:
        The recorder.
    """
    recorder = EvaluationRecorder()
    if isinstance(layer, TorchLayer):
        hook = TorchLayerHook(recorder)
        handles = (
            layer.register_forward_pre_hook(hook.before),
            layer.register_forward_hook(hook.after, always_call=True),
        )
        for handle in handles:
            weakref.finalize(owner, handle.remove)
        layer = layer.__dict__.get(STAND_IN)
    if layer is not None:
        layer._recorders = [*_alive(layer._recorders), weakref.ref(recorder)]
    weakref.finalize(owner, recorder.detach)
    return recorder


# -- layers and their parameters --------------------------------------------------------------------------------


def register(layer: Any) -> None:
    """Let optimizers that are made from bare parameters find the layer, as long as it lives.

    Args:
        layer: A ``QuantumLayer``.
    """
    if STANDS_IN not in layer.__dict__:
        _live.add(layer)


def hide(layer: Any) -> None:
    """Take back what ``register`` did, also for copies: another layer evaluates by this one.

    Args:
        layer: A ``QuantumLayer``.
    """
    layer.__dict__[STANDS_IN] = True
    _live.discard(layer)


def owners_of(parameters: Iterable[Tensor]) -> list[Any]:
    """Return the living quantum layers that have any of these parameters.

    Args:
        parameters: Bare parameters.
    """
    parameters = [p for p in parameters if isinstance(p, torch.nn.Parameter)]
    places = {id(p): k for k, p in enumerate(parameters)}

    def first(layer: Any) -> int:
        """The place of the layer's first parameter; their number where it has none of them."""
        own = [places[id(p)] for p in own_parameters(layer) if id(p) in places]
        return min(own, default=len(places))

    if not places:
        return []
    found = {id(layer): layer for layer in [*_live, *_torch_layers()]}
    return sorted((x for x in found.values() if first(x) < len(places)), key=first)


def own_parameters(layer: Any) -> list[Tensor]:
    """Return the parameters of a layer that are weights, or from which its weights are computed.

    Args:
        layer: A ``QuantumLayer`` or ``qml.qnn.TorchLayer``.
    """
    found: dict[int, Tensor] = {}
    for name, leaf in leaf_weights(layer).items():
        if leaf is not None:
            found[id(leaf)] = leaf
            continue
        # Parametrised, or by hooks that keep what a weight is computed from in the layer, as in pruning.
        known = getattr(layer, "parametrizations", {})
        inner = list(known[name].parameters()) if name in known else []
        prefixed = [p for n, p in layer._parameters.items() if n.startswith(f"{name}_")]
        found.update({id(p): p for p in [*inner, *prefixed] if p is not None})
    return list(found.values())


def leaf_weights(layer: Any) -> dict[str, Tensor | None]:
    """Return the weights that are parameters, by name; None for those that are computed.

    Args:
        layer: A ``QuantumLayer`` or ``qml.qnn.TorchLayer``.
    """
    if isinstance(layer, TorchLayer):
        return {n: w if w.is_leaf else None for n, w in layer.qnode_weights.items()}
    return {name: layer._parameters.get(name) for name in layer.weight_shapes}


def _torch_layers() -> list[Any]:
    """All living TorchLayers, which nobody registers: an instance refers to its class."""
    kinds: list[Any] = [TorchLayer]
    for kind in kinds:  # which grow on the way
        kinds += [one for one in kind.__subclasses__() if one not in kinds]
    return [one for one in gc.get_referrers(*kinds) if type(one) in kinds]


def _alive(references: Sequence[Any]) -> list[Any]:
    return [r for r in references if r() is not None and r()._active]


def _is_same(weight: Tensor, leaf: Tensor) -> bool:
    """Whether a weight is a parameter's copy in another dtype, or a mark of it."""
    node: Any = weight.grad_fn
    if weight.shape != leaf.shape or type(node).__name__ not in (
        "ToCopyBackward0",
        "ViewBackward0",
    ):
        return False
    return getattr(node.next_functions[0][0], "variable", None) is leaf


def without_graph(inputs: Tensor) -> Tensor:
    """Return a copy of a tensor without a graph; with the dimensions that ``vmap`` hides in front.

    Args:
        inputs: The tensor.
    """
    while is_wrapped(inputs):
        inputs, dim = unwrapped(inputs)
        if dim >= 0:
            with without_transforms():
                inputs = inputs.movedim(dim, 0)
    with without_transforms():
        return inputs.detach().clone()
