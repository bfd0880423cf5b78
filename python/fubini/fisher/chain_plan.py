"""Chains whose whole step is one call of the kernel, and whether they still are what they were.

``chain_blocks`` looks at a model anew in every step and makes blocks of it. For small models that takes longer than the
numbers. A plan knows the layers of a chain; what remains is to see that nothing about them has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from pennylane.qnn import TorchLayer
from torch import nn

from fubini import _core
from fubini.arrays import shared_array
from fubini.compile.compiled import Compiled
from fubini.fisher.chain import (
    OWN,
    Layer,
    chain_layers,
    has_recorders_alone,
    is_large,
    is_small_chain,
    is_usual,
)
from fubini.fisher.columns import Request
from fubini.fisher.kfac import form_of
from fubini.fisher.likelihoods import CLOSED_FORM
from fubini.fisher.plan import Form, Plan, Sized, is_simple
from fubini.nn.layer import QuantumLayer
from fubini.nn.recorder import Pass
from fubini.nn.stand_in import as_native
from fubini.nn.surroundings import modules_of
from fubini.torch_private import has_global_hook

Tensor = torch.Tensor

# Those of the functions of each entry that the kernel has.
_FUNCTIONS: dict[Any, str] = {
    nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.SiLU: "silu", nn.Tanh: "tanh",
}  # fmt: skip
# Up to so many columns, blocks are factorised with others in one call: see their ``factorise``.
_COLUMNS, _ROWS = 256, 16


class _Circuit(NamedTuple):
    """A quantum layer, and the form that the plan holds for."""

    module: Any
    native: Any
    form: Any
    width: int


class ChainPlan(Plan):
    """A chain, prepared for the kernel.

    Args:
        model: The model.
        request: What is asked for, checked.
        layers: Of the model.
        trained: Identities of the parameters that are trained.

    Attributes:
        kernel: Makes steps.
    """

    def __init__(
        self, model: nn.Module, request: Request, layers: Sequence[Layer], trained: set[int]
    ) -> None:
        super().__init__(request)
        self._layers, self._approx = layers, request.approx
        self.dtype = layers[0].parameters[0].dtype
        self.kernel = _core.FisherChain(request.likelihood.name)
        self._circuits: list[_Circuit] = []
        self._modules = [
            (m, type(m), tuple(m._modules.values()) if type(m) is nn.Sequential else None)
            for m in modules_of(model)
        ]
        self._parameters: list[tuple[Any, str, Tensor, int, torch.Size, bool]] = []
        self.width = 0
        self._is_scalar = False
        for layer in layers:
            self._add(layer, trained)
        self.parameters = [p for form in self.forms for p in form.parameters]

    @classmethod
    def of(
        cls, model: nn.Module, request: Request, trained: Sequence[Tensor], inputs: Tensor
    ) -> ChainPlan | None:
        """Return a plan; None where the model or what is asked for needs another way.

        Args:
            model: The model.
            request: What is asked for, checked.
            trained: The parameters whose metric is wanted, at least one.
            inputs: (N, features), of a pass that was seen.
        """
        if (
            request.approx is None
            or not is_simple(request)
            or type(request.likelihood) not in CLOSED_FORM
        ):
            return None
        layers = chain_layers(model)
        if layers is None:
            return None
        layers = [layer for layer in layers if type(layer.module) is not nn.Identity]
        every = [p for layer in layers for p in layer.parameters]
        wanted = {id(p) for p in trained}
        if (
            not layers
            or not layers[0].parameters
            or len({id(p) for p in every}) < len(every)
            or not wanted <= {id(p) for p in every}
            or not all(type(p) is nn.Parameter and p.is_contiguous() and p.numel() for p in every)
            or not all(is_usual(p, every[0].dtype) for p in [*every, inputs])
        ):
            return None
        try:
            plan = cls(model, request, layers, wanted)
        except _Unfit:
            return None
        fits = inputs.ndim == 2 and inputs.shape[1] == plan.width
        return plan if fits and plan.sized(len(inputs)) is not None else None

    def _add(self, layer: Layer, trained: set[int]) -> None:
        """Give a layer to the kernel."""
        module: Any = layer.module
        mine = [id(p) in trained for p in layer.parameters]
        if (any(mine) and not all(mine)) or self._is_scalar:
            raise _Unfit
        arrays: list[Any] = [shared_array(p) for p in layer.parameters]
        form = "none"
        columns: tuple[int, ...] = ()
        if type(module) is nn.Linear:
            rows, width = layer.parameters[0].shape
            size = sum(p.numel() for p in layer.parameters)
            columns = tuple(p.numel() // rows for p in layer.parameters)
            if any(mine):
                form = form_of(size, self._approx)
            if form == "kronecker" and not (rows <= _ROWS and rows < sum(columns) <= _COLUMNS):
                raise _Unfit
            self._join(width)
            self.kernel.add_linear(arrays[0], arrays[1] if len(arrays) > 1 else None, form)
            self._last = rows
        elif type(module) in _FUNCTIONS:
            self.kernel.add_function(_FUNCTIONS[type(module)])
        elif type(module) in (QuantumLayer, TorchLayer):
            form = form_of(0, self._approx) if any(mine) else "none"
            self._add_circuit(layer, arrays, form)
        else:
            raise _Unfit
        home = module.qnode_weights if type(module) is TorchLayer else module._parameters
        names = {id(p): name for name, p in home.items()}
        for p, is_trained in zip(layer.parameters, mine, strict=True):
            if id(p) not in names:
                raise _Unfit
            one = (home, names[id(p)], p, p.data_ptr(), p.shape, is_trained)
            self._parameters.append(one)
        if form != "none":
            self.forms.append(Form(layer.name, layer.parameters, form, columns))

    def _add_circuit(self, layer: Layer, arrays: list[Any], block: str) -> None:
        native: Any = as_native(layer.module)
        if native is None or not layer.parameters:
            raise _Unfit
        # Forms are found by the kind of inputs: those of a batch.
        width = self._last if self.width else native._width
        if width is None:
            raise _Unfit
        form = native._forms.find(native.qnode, self._example(2, width), layer.parameters)
        how = None if form is None else form.how
        if (
            not isinstance(how, Compiled)
            or how.state_weighted
            or how.decisions
            or how.circuit.takes_state
            or how.batch is not None
            or form.kind not in ("single", "list")
        ):
            raise _Unfit
        size = sum(p.numel() for p in layer.parameters)
        if block == "dense" and size > _COLUMNS:
            raise _Unfit
        self._join(width)
        self._is_scalar = form.kind == "single" and not how.circuit.output_shapes[0]
        self.kernel.add_circuit(how.circuit.program, how.map, arrays, block)
        how.remembers = True
        self._circuits.append(_Circuit(layer.module, native, form, width))
        self._last = how.circuit.num_outputs

    def _join(self, width: int) -> None:
        """See that the outputs so far fit a layer's inputs."""
        if not self.width:
            self.width = width
        elif self._last != width:
            raise _Unfit

    def _example(self, data: int, width: int) -> Tensor:
        return torch.empty((data, width), dtype=self.dtype)

    def _made(self, data: int) -> Sized | None:
        f = torch.empty((data,) if self._is_scalar else (data, self._last), dtype=torch.float64)
        found = self._sized(f) if is_small_chain(self._layers, data) else None
        if found is None:
            return None
        examples = tuple([self._example(data, c.width) for c in self._circuits])
        large = any(is_large(circuit.form, data) for circuit in self._circuits)
        return found._replace(examples=examples, large=large)

    def holds(self, seen: Pass, sized: Sized) -> bool:
        """See Plan: whether the model is as it was, and its circuits serve so many inputs."""
        if has_global_hook():
            return False
        top = self._modules[0][0]
        for module, kind, children in self._modules:
            own = module.__dict__
            if (
                type(module) is not kind
                or module._backward_hooks
                or module._backward_pre_hooks
                or (module is not top and (module._forward_hooks or module._forward_pre_hooks))
                or not own.keys().isdisjoint(OWN)
                or (children is not None and tuple(module._modules.values()) != children)
            ):
                return False
        if not has_recorders_alone(top):
            return False
        for home, name, p, pointer, shape, trained in self._parameters:
            if (
                home.get(name) is not p
                or p.data_ptr() != pointer
                or p.dtype is not self.dtype
                or p.shape != shape
                or (trained and not p.requires_grad)
                or not p.is_contiguous()
            ):
                return False
        for circuit, example in zip(self._circuits, sized.examples, strict=True):
            forms: Any = circuit.native._forms
            if circuit.native is circuit.module:  # which has looked for its form in the pass
                form = forms.latest
            elif as_native(circuit.module) is circuit.native:
                form = forms.find(circuit.module.qnode, example, ())
            else:
                return False
            if form is not circuit.form:
                return False
        return True

    def passes(self) -> list[Any]:
        """Return the last pass of every circuit, whose states may serve once more."""
        return [circuit.form.how.last for circuit in self._circuits]


class _Unfit(Exception):
    """The kernel has no such layer."""
