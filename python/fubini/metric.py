"""The Fubini-Study metric of QNodes and layers, per input or averaged, as a matrix over their weights."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pennylane as qml
import torch

from fubini import _core, native_metric
from fubini import device as device_engine
from fubini._arrays import like, to_numpy
from fubini.compiled import Affine
from fubini.layers import LayerRule, check_rule
from fubini.tape import GateTape, gate_tape

FloatArray = npt.NDArray[np.float64]
Approx = Literal["block-diag", "diag"] | None


def check_approx(approx: str | None) -> None:
    """Raise a ValueError unless approx names an approximation.

    Args:
        approx: The name to check.

    Raises:
        ValueError: If there is no such approximation.
    """
    if approx not in (None, "block-diag", "diag"):
        raise ValueError(f"approx: expected None (full), 'block-diag' or 'diag', got {approx!r}")


def weight_metric(
    tape: GateTape,
    device: Any,
    approx: Approx,
    layers: LayerRule = "wires",
    reduce: Literal["mean"] | None = None,
    angles: Sequence[int] | None = None,
) -> FloatArray:
    """Return the metric over the flattened weights: J^T g J of every input.

    Args:
        tape: The circuit with its Jacobian J.
        device: PennyLane device.
        approx: Which part of the metric over angles to take.
        layers: Which gates form a block.
        reduce: ``"mean"`` averages over the inputs.
        angles: Gate parameters to include, see ``GateTape.parameter_numbers``; None for all.

    Returns:
        (batch, P, P) for a circuit with a batch and no reduction, else (P, P).
    """
    if approx is None:
        blocks = [device_engine.full_metric(tape, device)]
    else:
        blocks = device_engine.metric_blocks(tape, device, diagonal=approx == "diag", layers=layers)
    if angles is not None:
        angles = [i for i, number in enumerate(tape.parameter_numbers) if number in angles]
    rows = max([tape.jacobian.shape[0], *(block.values.shape[0] for block in blocks)])
    size = tape.jacobian.shape[2]
    mean = reduce == "mean"
    total = np.zeros((size, size) if mean else (rows, size, size))
    for block in blocks:
        _add_pulled_back(total, block, tape.jacobian, mean, angles)
    if mean or tape.batch is None:
        return total.reshape(size, size)
    return np.broadcast_to(total, (tape.batch, size, size)) if rows == 1 else total


def compiled_metric(
    form: Affine,
    weights: FloatArray,
    inputs: FloatArray,
    approx: Approx,
    layers: LayerRule = "wires",
    reduce: Literal["mean"] | None = None,
) -> FloatArray:
    """Return the metric over the flattened weights of a compiled circuit, on the native engine.

    Args:
        form: The compiled circuit.
        weights: (P,).
        inputs: (batch, features).
        approx: Which part of the metric over angles to take.
        layers: Which gates form a block.
        reduce: ``"mean"`` averages over the inputs.

    Returns:
        (batch, P, P), or (P, P) for the mean.
    """
    angles = form.angles(weights, inputs)
    native_metric.check_finite("angles", angles, False)
    # Angles that only encode inputs have no row in the Jacobian, and must not cut layers.
    trainable = np.flatnonzero(form.weights.any(axis=1)).tolist()
    if approx is None:
        values = _core.metric(form.circuit.program, angles, None, reduce == "mean", trainable)
        blocks = [(tuple(trainable), values)]
    else:
        diagonal = approx == "diag"
        blocks = native_metric.metric_blocks(
            form.circuit, angles, None, reduce, layers, diagonal, frozenset(trainable)
        )
    size = form.weights.shape[1]
    mean = reduce == "mean"
    total = np.zeros((1 if mean else len(inputs), size, size))
    for indices, values in blocks:
        block = device_engine.Block(indices, values[None] if mean else values)
        _add_pulled_back(total, block, form.weights[None], False, None)
    return total[0] if mean else total


def _add_pulled_back(
    total: FloatArray,
    block: device_engine.Block,
    jacobian: FloatArray,
    mean: bool,
    angles: Sequence[int] | None,
) -> None:
    values, indices = block.values, list(block.angles)
    if angles is not None:
        keep = [k for k, i in enumerate(indices) if i in angles]
        indices = [indices[k] for k in keep]
        values = values[:, keep] if values.ndim == 2 else values[:, keep][:, :, keep]
    rows = jacobian[:, indices, :]  # (1 or batch, k, P)
    columns = np.flatnonzero(rows.any(axis=(0, 1)))
    rows = rows[:, :, columns]
    if mean and rows.shape[0] == 1:
        values = _core_mean(values)  # the pull-back is linear: average first, contract once
    scaled = values[:, :, None] * rows if values.ndim == 2 else values @ rows
    pulled = rows.transpose(0, 2, 1) @ scaled
    if mean:
        pulled = _core_mean(pulled)[0]
    # Products in floating point need not be symmetric to the last bit; the triangle is the result.
    pulled = np.tril(pulled) + np.swapaxes(np.tril(pulled, -1), -1, -2)
    total[..., columns[:, None], columns[None, :]] += pulled


def _core_mean(values: FloatArray) -> FloatArray:
    result: FloatArray = _core.mean_over_batch(np.ascontiguousarray(values))
    return result[None]


def metric_tensor(
    qnode: Any,
    approx: Approx = None,
    *,
    argnum: int | Sequence[int] | None = None,
    layers: LayerRule = "wires",
    reduce: Literal["mean"] | None = None,
    joint: bool = False,
) -> Callable[..., Any]:
    r"""Return a function that computes the Fubini-Study metric of a QNode or layer.

    The metric is :math:`g_{ij} = \mathrm{Re}[\langle\partial_i\psi|\partial_j\psi\rangle -
    \langle\partial_i\psi|\psi\rangle\langle\psi|\partial_j\psi\rangle]` as in ``qml.metric_tensor`` (Stokes et al.
    2020, arXiv:1909.02108); the quantum Fisher information is 4 g. It is computed over the gates' angles and pulled
    back to the weights, input by input: :math:`g = J_b^T g_b J_b`.

    Args:
        qnode: A QNode (any interface, any ``diff_method``), a ``QuantumLayer`` or a ``qml.qnn.TorchLayer``. Its
            device runs the circuits; it must be analytic. The QNode's measurements do not matter.
        approx: ``None`` for the full metric (needs a device that returns states), ``"block-diag"`` for one block per
            layer of gates, ``"diag"`` for the variances only. The approximation is made between angles; where
            several angles share a weight, or one angle mixes several, the pulled-back matrix couples them.
        argnum: Gate parameters to take, by their position among all parameters of the decomposed circuit; entries of
            all others are zero, as in ``qml.metric_tensor``. None for all.
        layers: Which gates form a block: ``"wires"``, ``"maximal"`` or ``"queue"``, see ``fubini.layers``.
        reduce: ``"mean"`` averages over a batch of inputs; None keeps one metric per input.
        joint: Return one matrix over all weights, with the blocks between different arguments.

    Returns:
        A function with the QNode's arguments (a layer's: its inputs). Weights are the positional arguments that
        require grad; if there are none, the keyword arguments that do. It returns, for each weight, a tensor of
        shape ``(*w.shape, *w.shape)``, preceded by the batch where the circuit has one and ``reduce`` is None; a
        tuple for several weights; with ``joint=True`` one ``(P, P)`` matrix over the flattened weights in order. The
        result has the dtype and device of the weight and carries no graph.

    Raises:
        TypeError: If qnode is no QNode or quantum layer.
        ValueError: For an unknown approx, layers or reduce.
    """
    check_approx(approx)
    check_rule(layers)
    if reduce not in (None, "mean"):
        raise ValueError(f"reduce: expected None or 'mean', got {reduce!r}")
    chosen = None if argnum is None else [argnum] if isinstance(argnum, int) else list(argnum)
    if isinstance(qnode, torch.nn.Module):
        return _layer_metric_fn(qnode, approx, chosen, layers, reduce, joint)

    if not isinstance(qnode, qml.QNode):
        raise TypeError(
            f"qnode: expected a QNode, a QuantumLayer or a TorchLayer, got {type(qnode).__name__}; make one by "
            "qml.QNode(function, device)"
        )

    @functools.wraps(qnode.func)
    def metric(*args: Any, **kwargs: Any) -> Any:
        weights = _weights_of(qnode, args, kwargs)
        tape = gate_tape(qnode, args, kwargs, weights)
        matrix = weight_metric(tape, qnode.device, approx, layers, reduce, chosen)
        templates = [args[w] if isinstance(w, int) else kwargs[w] for w in weights]
        return _as_returned(matrix, templates, joint)

    return metric


def _layer_metric_fn(
    layer: Any,
    approx: Approx,
    argnum: list[int] | None,
    layers: LayerRule,
    reduce: Literal["mean"] | None,
    joint: bool,
) -> Callable[..., Any]:
    if not (hasattr(layer, "qnode") and hasattr(layer, "qnode_weights")):
        raise TypeError(
            f"qnode: expected a QNode, a QuantumLayer or a TorchLayer, got {type(layer).__name__}; for a model, pass "
            "one of its quantum layers"
        )

    def metric(inputs: Any) -> Any:
        matrix = layer_metric(layer, inputs, approx, layers, reduce, argnum)
        return _as_returned(matrix, list(layer.qnode_weights.values()), joint)

    return metric


def layer_metric(
    layer: Any,
    inputs: torch.Tensor,
    approx: Approx,
    layers: LayerRule = "wires",
    reduce: Literal["mean"] | None = None,
    argnum: Sequence[int] | None = None,
) -> FloatArray:
    """Return the metric over the flattened weights of a QuantumLayer or TorchLayer.

    Args:
        layer: The layer; a QuantumLayer whose circuit is compiled is served by the native engine, others by the device.
        inputs: (features,) or (..., features); leading dimensions are one batch, as in the layer's forward.
        approx: Which part of the metric over angles to take.
        layers: Which gates form a block.
        reduce: ``"mean"`` averages over the inputs.
        argnum: Gate parameters to include; None for all.

    Returns:
        (batch, P, P), or (P, P) for the mean and for a single input.
    """
    if inputs.ndim > 1:
        inputs = inputs.reshape(-1, inputs.shape[-1])
    weights = layer.qnode_weights
    form = layer.compiled(inputs) if argnum is None and hasattr(layer, "compiled") else None
    if form is None:
        tape = gate_tape(layer.qnode, (), {layer.input_arg: inputs, **weights}, list(weights))
        return weight_metric(tape, layer.qnode.device, approx, layers, reduce, argnum)
    flat = np.concatenate([to_numpy(w).reshape(-1) for w in weights.values()])
    values = to_numpy(inputs).reshape(-1, inputs.shape[-1])
    result = compiled_metric(form, flat, values, approx, layers, reduce)
    return result[0] if inputs.ndim == 1 and reduce is None else result


def _weights_of(qnode: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[int | str]:
    positional: list[int | str] = [i for i, value in enumerate(args) if _requires_grad(value)]
    if positional:
        return positional
    order = list(inspect.signature(qnode.func).parameters)
    names = [n for n, value in kwargs.items() if _requires_grad(value)]
    names.sort(key=lambda n: order.index(n) if n in order else len(order))
    if not names:
        raise ValueError(
            "arguments: expected at least one that requires grad, got none. Use tensor.requires_grad_() for torch, "
            "pennylane.numpy.array(..., requires_grad=True) for autograd."
        )
    return list(names)


def _requires_grad(value: Any) -> bool:
    return bool(getattr(value, "requires_grad", False))


def _as_returned(matrix: FloatArray, templates: list[Any], joint: bool) -> Any:
    if joint:
        return like(matrix, templates[0])
    results, start = [], 0
    for template in templates:
        shape = tuple(template.shape)
        size = int(np.prod(shape, dtype=int))
        part = matrix[..., start : start + size, start : start + size]
        results.append(like(part.reshape((*matrix.shape[:-2], *shape, *shape)), template))
        start += size
    return results[0] if len(results) == 1 else tuple(results)
