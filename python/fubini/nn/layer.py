"""A quantum circuit as a torch module, interchangeable with ``qml.qnn.TorchLayer``."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pennylane as qml
import torch

from fubini.compile.compiled import Compiled, Traced
from fubini.compile.function import compile_function, rest_of
from fubini.devices.executor import check_device, device_reason
from fubini.errors import UnsupportedCircuitError
from fubini.native.reading import Reading
from fubini.nn.copies import found_qnode, reduced, share_uncopyable
from fubini.nn.device_pass import derivatives_of
from fubini.nn.evaluations import EvaluationRecorder, register
from fubini.nn.forms import Form, Forms, arranged, check_stack, tuples_are_stacked, with_leading
from fubini.nn.layer_weights import (
    InitMethod,
    WeightShapes,
    check_unbatched,
    data_argument,
    has_inputs,
    initial_weight,
    weight_shape,
)
from fubini.nn.native_pass import run_compiled, run_reading, run_traced
from fubini.nn.on_device import OnDevice
from fubini.nn.operation import as_operation
from fubini.options import Engine, check_engine
from fubini.torch_private import is_traced, uncompiled

Tensor = torch.Tensor


class QuantumLayer(OnDevice):
    """A QNode as a torch module with trainable weights; a drop-in for ``qml.qnn.TorchLayer``.

    The quantum function takes the data as its argument ``inputs`` and every weight as an argument of its own. Inputs
    of shape (features,) give one result; leading dimensions are batches, run by parameter broadcasting, so the
    function must index features from the end: ``inputs[..., 0]``. A function without that argument, such as an energy,
    makes a layer without data, which is called as ``layer()``.

    The native engine compiles the circuit in the first call: the function runs once, on the caller's numbers, and what
    it computes with them is recorded. What it read besides its arguments is compared in every call, and a change
    compiles it anew. A function that does what is not understood (branches on data, reads files, counts its calls) runs
    in every call, and only its gates are native. ``explain()`` says what was done and why.

    On the device engine, ``diff_method="parameter-shift"``, and ``"best"`` with shots or on a device that is no simulator,
    run all shifts of all inputs of a backward pass as one execution; ``"best"`` on other devices than default.qubit and
    default.mixed, and ``"adjoint"`` on lightning simulators, take the device's own exact derivatives instead where it
    has them; everything else is differentiated by PennyLane.

    Args:
        qnode: The QNode, interface ``"auto"`` or ``"torch"``.
        weight_shapes: Shape of every weight by name; an int n stands for (n,), 1 for (), as in TorchLayer.
        init_method: Initialises a weight in place, e.g. ``torch.nn.init.normal_``; or a dictionary with such a
            function or a tensor per weight. Default: uniform in [0, 2 pi).
        engine: ``"native"`` runs the circuit in fubini's kernel, ``"device"`` the QNode on its PennyLane device;
            ``"auto"`` takes the native engine where the device is a noiseless state-vector simulator without shots
            and every operation and measurement is supported.
        static: Promise that whatever the quantum function reads besides its arguments never changes. Then nothing is
            compared before a call, and a function that cannot be followed for what it reads is compiled all the same.

    Attributes:
        qnode: The QNode.
        weight_shapes: Shape of every weight.
        input_arg: Name of the data argument; None for a layer without data.
        executor: Runs the circuits of the device engine: set it for retries, chunks or a progress bar of your own.
        shot_noise: What an optimizer needs to know of the last forward pass on a device; else None.

    Raises:
        UnsupportedCircuitError: For a device that runs no parametrised circuits (default.clifford).
        TypeError: If the QNode takes ``*args``, or has neither an argument ``inputs`` nor a weight shape for every
            argument.
        ValueError: If names or shapes of the weights do not fit the QNode, or its interface is not torch.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(inputs, w):
        ...     qml.AngleEmbedding(inputs, wires=range(2))
        ...     qml.BasicEntanglerLayers(w, wires=range(2))
        ...     return [qml.expval(qml.Z(wire)) for wire in range(2)]
        >>> layer = fubini.QuantumLayer(circuit, {"w": (3, 2)}, torch.nn.init.zeros_)
        >>> layer(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
        >>> layer.engine
        'native'
    """

    input_arg: str | None = "inputs"

    _instead: Callable[..., Tensor] | None = None

    def __init__(
        self,
        qnode: Any,
        weight_shapes: WeightShapes,
        init_method: InitMethod = None,
        *,
        engine: Engine = "auto",
        static: bool = False,
    ) -> None:
        super().__init__()
        check_engine(engine)
        if qnode.interface not in ("auto", "torch"):
            raise ValueError(
                f"qnode: expected the interface 'auto' or 'torch', got {qnode.interface!r}; "
                "pass interface='torch' to qml.qnode"
            )
        check_device(qnode.device)
        self.qnode = qnode
        self.input_arg = self.input_arg  # a later set_input_argument is for later layers
        self._executor = None
        self.shot_noise = None  # of the last forward pass, for recorders
        self.weight_shapes = {n: weight_shape(n, size) for n, size in weight_shapes.items()}
        kind = type(self).__name__
        self.input_arg = data_argument(qnode, self.weight_shapes, self.input_arg, kind)
        for name, shape in self.weight_shapes.items():
            weight = initial_weight(name, shape, init_method)
            self.register_parameter(name, torch.nn.Parameter(weight))
        self._requested_engine: Engine = engine
        self._static = bool(static)
        self._width: int | None = None
        self._forms = Forms()
        # Weak references to optimizers that want to know what is evaluated.
        self._recorders: list[weakref.ref[EvaluationRecorder]] = []
        register(self)

    @classmethod
    def from_torch_layer(cls, layer: Any, *, engine: Engine = "auto") -> "QuantumLayer":
        """Return a QuantumLayer that shares the QNode and the Parameters of a TorchLayer.

        Args:
            layer: A ``qml.qnn.TorchLayer``.
            engine: As in the constructor.

        Returns:
            The layer.

        Raises:
            TypeError: If layer is no TorchLayer.
        """
        if not isinstance(layer, qml.qnn.TorchLayer):
            raise TypeError(f"layer: expected a qml.qnn.TorchLayer, got {type(layer).__name__}")
        weights = dict(layer.qnode_weights)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        result = cls.__new__(cls)
        result.__dict__["input_arg"] = layer.input_arg  # by which the QNode's signature is checked
        result.__init__(  # type: ignore[misc]
            layer.qnode, shapes, {n: w.detach() for n, w in weights.items()}, engine=engine
        )
        for name, weight in weights.items():
            result.register_parameter(name, weight)
        return result.train(layer.training)

    @classmethod
    def set_input_argument(cls, input_name: str = "inputs") -> None:
        """Set the name of the data argument of layers made from now on, as ``TorchLayer.set_input_argument`` does.

        Args:
            input_name: The name of an argument of their quantum functions.

        Raises:
            TypeError: If it is no name.
        """
        if not isinstance(input_name, str) or not input_name.isidentifier():
            raise TypeError(
                f"input_name: expected the name of an argument of the quantum function, got {input_name!r}"
            )
        cls.input_arg = input_name

    @property
    def qnode_weights(self) -> dict[str, torch.nn.Parameter]:
        """The weights by name, in the order of ``weight_shapes``."""
        return {name: getattr(self, name) for name in self.weight_shapes}

    @property
    def engine(self) -> str:
        """The engine that evaluates the circuit, ``"native"`` or ``"device"``; before the first call, the plan."""
        if self._forms:
            return "device" if isinstance(self._forms.first.how, str) else "native"
        return "native" if self._device_reason() is None else "device"

    def explain(self) -> str:
        """Say in one sentence which engine evaluates the circuit and why."""
        how = self._forms.first.how if self._forms else self._device_reason()
        if isinstance(how, str):
            return f"The circuit runs on its PennyLane device {self.qnode.device.name!r}: {how}. {self._derivatives()}"
        if how is None:
            return "The native engine compiles the circuit in the first call: the device is a noiseless simulator."
        return how.explain() if isinstance(how, Traced) else how.explain("weights and inputs")

    def __getstate__(self) -> dict[str, Any]:
        """Compiled circuits are not copied: the copy compiles its own."""
        return {**self.__dict__, "_forms": Forms(), "_recorders": [], "shot_noise": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is found by optimizers as the original is."""
        state = {"_recorders": [], **state}
        state["qnode"] = found_qnode(state["qnode"])
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        register(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A QNode that a module has under its function's name is pickled as functions are, by that name."""
        return reduced(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Copy the layer, with a QNode on a copy of the device, or, where that cannot be copied, on the same device."""
        share_uncopyable(self.qnode, memo)
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        result.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return result

    @uncompiled
    def forward(self, inputs: Tensor | None = None) -> Tensor:
        """Evaluate the circuit.

        Args:
            inputs: (features,) or (..., features); any floating dtype. Integers and booleans reach the quantum function in
                torch's default dtype. None for a layer without data.

        Returns:
            The QNode's result in the dtype of inputs, without data in that of the weights. One measurement: (...,) plus its own shape; a list of m
            measurements: (..., m) side by side; a tuple: as TorchLayer of the
            installed PennyLane arranges it. Without data all measurements lie side by side, (m,).

        Raises:
            TypeError: If inputs is no tensor, or complex, or given to a layer without data.
            ValueError: If inputs are empty, of another width than in the first call, or mixed up with the batch by
                the quantum function; or if weights or inputs do not fit it.
        """
        # A Fisher pass, which sees what an override of forward passes on.
        if self._instead is not None:
            return self._instead() if inputs is None else self._instead(inputs)
        inputs, weights = self._checked(inputs)
        if is_traced(inputs, weights):
            return as_operation(self, inputs, weights)
        return self.values(inputs, weights)

    def values(self, inputs: Tensor, weights: list[Tensor]) -> Tensor:
        """Return what forward returns for given weights, without checks.

        Args:
            inputs: (features,) or (..., features), floating-point.
            weights: In the order of ``weight_shapes``.
        """
        leading = inputs.shape[:-1]
        results = self._evaluated(inputs, weights)
        if isinstance(results, tuple):
            check_stack(results)
            return torch.stack([with_leading(r, leading) for r in results])
        return with_leading(results, leading)

    def evaluated(self, inputs: Tensor | None = None) -> Any:
        """Return the results for the inputs in one batch: a tensor, or a tuple of them for a tuple of measurements.

        Args:
            inputs: As for ``forward``.
        """
        return self._evaluated(*self._checked(inputs))

    def no_inputs(self) -> Tensor:
        """Return the inputs of a layer without data: one input without features, (0,), like the weights."""
        weights = [w for w in self.qnode_weights.values() if w.is_floating_point()]
        dtype = weights[0].dtype if weights else torch.get_default_dtype()
        for w in weights[1:]:
            dtype = torch.promote_types(dtype, w.dtype)
        return torch.empty(0, dtype=dtype, device=weights[0].device if weights else None)

    def _evaluated(self, inputs: Tensor, weights: list[Tensor]) -> Any:
        flat = inputs if inputs.ndim < 3 else inputs.reshape(-1, inputs.shape[-1])
        watched = []
        if self._recorders:
            named = dict(zip(self.weight_shapes, weights, strict=True))
            alive = [r for reference in self._recorders if (r := reference()) is not None]
            begun = [(recorder, recorder.begin(flat, named)) for recorder in alive]
            watched = [(recorder, seen) for recorder, seen in begun if seen is not None]
            weights = list(named.values())
        form, reading = self._form_and_reading(flat, weights)
        results: Any
        if isinstance(form.how, str):
            results = self._run_on_device(form, flat, weights)
        else:
            results = self._run(form, flat, weights, reading)
        for recorder, seen in watched:
            recorder.close(seen, form.how, self.shot_noise)
        return results

    def compiled(self, inputs: Tensor | None = None) -> Compiled | None:
        """Return the compiled circuit that serves these inputs, or None where the quantum function runs in every call.

        None also where the initial state depends on weights, because then the angles are not all that does.

        Args:
            inputs: (features,) or (batch, features); None for a layer without data.
        """
        how = self._form(self.no_inputs() if inputs is None else inputs).how
        return how if isinstance(how, Compiled) and not how.state_weighted else None

    def extra_repr(self) -> str:
        """Return the part of ``repr`` between the parentheses."""
        shapes = ", ".join(f"{name}={list(shape)}" for name, shape in self.weight_shapes.items())
        return f"{getattr(self.qnode.func, '__name__', 'function')}, {shapes}, device={self.qnode.device.name!r}, engine={self.engine!r}"

    def _device_reason(self) -> str | None:
        """Why the circuit cannot run natively, as far as that is known without compiling it."""
        if self._requested_engine == "device":
            return "the device engine was asked for"
        return device_reason(self.qnode) or None

    def _form(self, x: Tensor) -> Form:
        return self._form_and_reading(x, list(self.qnode_weights.values()))[0]

    def _form_and_reading(self, x: Tensor, weights: list[Tensor]) -> tuple[Form, Reading | None]:
        """The form for these inputs, compiled anew where something has changed, and what was read in the run for that."""
        form = self._forms.find(self.qnode, x, weights)
        if form is not None:
            return form, None
        named = dict(zip(self.weight_shapes, weights, strict=True))
        data: Tensor | None = x
        if self.input_arg is None:
            named, data = {n: w.to(x) for n, w in named.items()}, None
        run = compile_function(self.qnode, self.input_arg, named, data, static=self._static)
        if self.input_arg is None:
            check_unbatched(self.qnode, run, named)
        how = self._device_reason() or run.how
        if run.kind == "other" and not isinstance(how, str):
            how = "the quantum function returns something else than measurements of real numbers"
        if isinstance(how, str) and self._requested_engine == "native":
            raise UnsupportedCircuitError(
                f"engine: 'native' cannot run this circuit: {how}; use engine='auto'"
            )
        shifted = not isinstance(how, str) or derivatives_of(self.qnode) != "pennylane"
        kind = run.kind if shifted else "other"
        if kind == "tuple" and (self.input_arg is None or not tuples_are_stacked()):
            kind = "list"
        self._width = x.shape[-1]
        form = Form(how, kind, self.qnode, rest_of(self.qnode))
        self._forms.add(form, x)
        return form, run.reading

    def _run(self, form: Form, x: Tensor, weights: list[Tensor], reading: Reading | None) -> Any:
        if isinstance(form.how, Compiled):
            circuit = form.how.circuit
            values = run_compiled(form.how, x if x.ndim > 1 else x.unsqueeze(0), weights)
            values = values if x.ndim > 1 else values.squeeze(0)
        elif (
            reading is not None
        ):  # the function has just run for this call, and may count its calls
            values, circuit = run_reading(reading, x)
        else:
            values, circuit = run_traced(self.qnode, self._arguments(x, weights), x)
        return arranged(values.to(x), circuit.output_shapes, form.kind)

    def _checked(self, inputs: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """The inputs, floating-point, and the weights in order, after all checks."""
        if not has_inputs(inputs, self.input_arg):
            return self.no_inputs(), self._checked_weights()
        weights = self._checked_weights()
        width = inputs.shape[-1]
        if self._width is not None and width != self._width:
            raise ValueError(
                f"inputs: expected {self._width} features as in the first call, got shape {tuple(inputs.shape)}"
            )
        if not inputs.is_floating_point():
            inputs = inputs.to(torch.get_default_dtype())
        return inputs, weights

    def _checked_weights(self) -> list[Tensor]:
        weights: list[Tensor] = []
        for name, shape in self.weight_shapes.items():
            # A look-up in the dictionary is quicker, and there for all but parametrised weights.
            weight = self._parameters.get(name)
            weight = getattr(self, name) if weight is None else weight
            if weight.shape != shape:
                raise ValueError(
                    f"{name}: expected the shape {shape} of weight_shapes, got {tuple(weight.shape)}"
                )
            weights.append(weight)
        return weights
