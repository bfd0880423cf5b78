"""Quantum natural gradient as a torch optimizer for hybrid models."""

import inspect
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pennylane as qml
import torch

from fubini._arrays import to_numpy
from fubini.errors import NumericalError
from fubini.layers import LayerRule, check_rule
from fubini.metric import Approx, check_approx, layer_metric
from fubini.solve import solve
from fubini.torch.layer import QuantumLayer
from fubini.torch.recorder import InputRecorder

FloatArray = npt.NDArray[np.float64]
Direction = dict[torch.Tensor, torch.Tensor]


class QNGOptimizer(torch.optim.Optimizer):
    r"""Quantum natural gradient descent, :math:`\theta \leftarrow \theta - \eta\,(g + \lambda I)^{-1} \nabla L`.

    Every ``QuantumLayer`` or ``qml.qnn.TorchLayer`` in the model gets its own metric g, the Fubini-Study metric
    averaged over the inputs that the layer saw in the passes whose gradients are being applied (behind any classical
    layers): :math:`g = \frac1B \sum_b J_b^T g_b J_b` (Stokes et al. 2020, arXiv:1909.02108). Layers that share a
    parameter are treated together, their metrics added. The metric is taken at the weights that ``step`` finds. All other parameters take the plain gradient step.

    Two ways of use::

        opt = QNGOptimizer(model, lr=0.05)
        opt.zero_grad(); loss_fn(model(x), y).backward(); opt.step()

        opt = QNGOptimizer([params], lr=0.05)
        def closure():
            opt.zero_grad(); loss = circuit(params); loss.backward()
            return loss, fubini.metric_tensor(circuit, approx="block-diag")
        opt.step(closure)

    In the second, the metric function is called with the optimizer's parameters that belong to no quantum layer, in
    order, as many as it takes; it returns what ``qml.metric_tensor`` returns. Parameters beyond take the plain
    gradient step, as all do when the closure returns only the loss.

    Args:
        params: A module, or parameters or parameter groups as every torch optimizer takes.
        lr: Step size; per group.
        model: The module whose quantum layers give the metric; needed when params is no module.
        metric: ``"quantum"``, the Fubini-Study metric.
        approx: ``"block-diag"``, ``"diag"`` or None (full), see ``fubini.metric_tensor``.
        lam: What is added to the metric's diagonal, in the metric's units; per group.
        layers: Which gates form a block, see ``fubini.layers``.

    Raises:
        TypeError: If params is not iterable or model is no module.
        ValueError: For a negative or non-finite lr or lam, an unknown word, or duplicate parameters.
    """

    def __init__(
        self,
        params: torch.nn.Module | Iterable[Any],
        lr: float = 0.01,
        *,
        model: torch.nn.Module | None = None,
        metric: Literal["quantum"] = "quantum",
        approx: Approx = "block-diag",
        lam: float = 1e-3,
        layers: LayerRule = "wires",
    ) -> None:
        if metric != "quantum":
            raise ValueError(f"metric: expected 'quantum', got {metric!r}")
        check_approx(approx)
        check_rule(layers)
        if isinstance(params, torch.nn.Module):
            if model is not None and model is not params:
                raise ValueError(
                    "model: expected none besides the module in params, got another module"
                )
            model = params
            params = list(model.parameters())
        if model is not None and not isinstance(model, torch.nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        self._approx: Approx = approx
        self._layers: LayerRule = layers
        self._model = model
        super().__init__(params, {"lr": lr, "lam": lam})
        self._attach()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters.

        Args:
            param_group: ``params``, and optionally ``lr`` and ``lam``.

        Raises:
            ValueError: For a negative or non-finite lr or lam, or a parameter that is there already.
        """
        for name in ("lr", "lam"):
            _check_number(name, param_group.get(name, self.defaults[name]))
        parameters = param_group.get("params", [])
        if not isinstance(parameters, torch.Tensor):
            parameters = param_group["params"] = list(parameters)
            if len({id(p) for p in parameters}) < len(parameters):
                raise ValueError("params: expected every parameter once, got a duplicate")
        super().add_param_group(param_group)
        if hasattr(
            self, "_units"
        ):  # after construction: the new parameters may belong to quantum layers
            self._attach()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Everything is computed and checked before the first parameter changes, and no ``.grad`` is written to.

        Args:
            closure: Clears the gradients, computes the loss, calls ``backward``; returns the loss, or
                ``(loss, metric_tensor_fn)``.

        Returns:
            The loss that the closure returned, or None without a closure.

        Raises:
            NumericalError: If a gradient, weight or metric is not finite, or a metric is singular with ``lam=0``.
            RuntimeError: If a quantum layer has gradients but no recorded forward pass.
            TypeError: If the closure returns something else.
        """
        loss, metric_fn = self._evaluate(closure)
        self._check_groups()
        directions: Direction = {}
        for layers in self._units:
            directions.update(self._layer_directions(layers))
        if metric_fn is not None:
            directions.update(self._closure_directions(metric_fn))
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(directions.get(p, p.grad), alpha=-float(group["lr"]))
        return loss

    # -- what is where ------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        """Find the quantum layers, join those that share parameters, and start recording their inputs."""
        known: dict[torch.nn.Module, InputRecorder] = getattr(self, "_recorders", {})
        self._recorders: dict[torch.nn.Module, InputRecorder] = {}
        self._units: list[list[tuple[str, Any]]] = []
        self._names: dict[torch.Tensor, str] = {}
        if self._model is None:
            return
        self._names = {p: name for name, p in self._model.named_parameters()}
        found = False
        owned = {p for group in self.param_groups for p in group["params"]}
        for name, module in self._model.named_modules():
            if not isinstance(module, QuantumLayer | qml.qnn.TorchLayer):
                continue
            found = True
            weights = set(module.qnode_weights.values())
            if not weights & owned:
                continue
            _check_shapes(name, module)
            recorder = known.get(module) or InputRecorder(module.input_arg)
            if module not in known:
                handle = module.register_forward_hook(recorder, with_kwargs=True)
                weakref.finalize(self, handle.remove)
                weakref.finalize(self, recorder.detach)
            self._recorders[module] = recorder
            unit = [(name or type(module).__name__, module)]
            for other in [u for u in self._units if weights & _weights(u)]:
                self._units.remove(other)
                unit = other + unit
            self._units.append(unit)
        if not found:
            warnings.warn(
                "model: found no QuantumLayer or TorchLayer; every parameter takes the plain gradient step",
                stacklevel=3,
            )

    def __getstate__(self) -> dict[str, Any]:
        """Keep the model, so that a deep copy or pickle of the optimizer finds its layers again."""
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_model": self._model, "_approx": self._approx, "_layers": self._layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_model" in state:  # absent where load_state_dict calls this with the groups only
            self._attach()

    # -- directions ---------------------------------------------------------------------------------------------

    def _layer_directions(self, layers: list[tuple[str, Any]]) -> Direction:
        """Directions of the parameters of layers that share parameters (usually one layer)."""
        lam = {p: float(group["lam"]) for group in self.param_groups for p in group["params"]}
        weights = list(dict.fromkeys(w for _, m in layers for w in m.qnode_weights.values()))
        moving = [p for p in weights if p in lam and p.grad is not None]
        if not moving:
            return {}
        offsets = dict(
            zip(weights, np.cumsum([0, *(p.numel() for p in weights)]).tolist(), strict=False)
        )
        total = np.zeros((sum(p.numel() for p in weights),) * 2)
        for name, module in layers:
            own = list(module.qnode_weights.values())
            index = np.concatenate([np.arange(p.numel()) + offsets[p] for p in own])
            total[np.ix_(index, index)] += self._layer_metric(name, module)
        chosen = np.concatenate([np.arange(p.numel()) + offsets[p] for p in moving])
        label = ", ".join(name for name, _ in layers)
        return self._solve(label, total[np.ix_(chosen, chosen)], moving, [lam[p] for p in moving])

    def _layer_metric(self, name: str, module: Any) -> Any:
        for weight, p in module.qnode_weights.items():
            if not torch.isfinite(p).all():
                raise NumericalError(
                    f"{name}.{weight}: expected finite weights, got NaN or infinity"
                )
        batches = self._recorders[module].batches
        if not batches:
            raise RuntimeError(
                f"{name}: the weights have gradients, but no backward pass went through the layer's forward since the "
                "optimizer was made; call model(inputs) and loss.backward() before step()"
            )
        inputs = torch.cat([b.reshape(-1, b.shape[-1]) for b in batches])
        if not torch.isfinite(inputs).all():
            raise NumericalError(
                f"{name}: expected finite inputs of the layer, got NaN or infinity"
            )
        return layer_metric(module, inputs, self._approx, self._layers, "mean")

    def _closure_directions(self, metric_fn: Callable[..., Any]) -> Direction:
        in_layers = {p for unit in self._units for p in _weights(unit)}
        free = [
            (p, float(group["lam"]))
            for group in self.param_groups
            for p in group["params"]
            if p not in in_layers
        ]
        free = free[: _positional_count(metric_fn)]
        with torch.enable_grad():
            metric = metric_fn(*(p for p, _ in free))
        metrics = metric if isinstance(metric, tuple | list) else (metric,)
        sizes = [p.numel() for p, _ in free]
        if len(metrics) == 1 and np.prod(metrics[0].shape, dtype=int) == sum(sizes) ** 2:
            parts = [free]  # one matrix over all of them
        elif len(metrics) == len(free):
            parts = [[entry] for entry in free]
        else:
            raise ValueError(
                f"metric_tensor_fn: expected one metric per parameter, {len(free)}, or one over all, got {len(metrics)}"
            )
        directions: Direction = {}
        for matrix, part in zip(metrics, parts, strict=True):
            size = sum(p.numel() for p, _ in part)
            if np.iscomplexobj(matrix) or (
                isinstance(matrix, torch.Tensor) and matrix.is_complex()
            ):
                raise TypeError(
                    "metric_tensor_fn: expected a real metric, got a complex one; take its real part"
                )
            if np.prod(matrix.shape, dtype=int) != size**2:
                raise ValueError(
                    f"metric_tensor_fn: expected a metric of {size} x {size} entries for parameters of shapes "
                    f"{[tuple(p.shape) for p, _ in part]}, got shape {tuple(matrix.shape)}; for a batch of inputs use "
                    "fubini.metric_tensor(..., reduce='mean')"
                )
            moving = [(p, lam) for p, lam in part if p.grad is not None]
            if not moving:
                continue
            mask = np.concatenate([np.full(p.numel(), p.grad is not None) for p, _ in part])
            values = to_numpy(matrix).reshape(size, size)[np.ix_(mask, mask)]
            directions.update(
                self._solve(
                    "metric_tensor_fn", values, [p for p, _ in moving], [v for _, v in moving]
                )
            )
        return directions

    def _solve(
        self, label: str, metric: Any, parameters: list[torch.Tensor], lam: list[float]
    ) -> Direction:
        """Return (g + lam I)^-1 grad, cut into the parameters' shapes."""
        if not np.isfinite(metric).all():
            raise NumericalError(f"{label}: expected a finite metric, got NaN or infinity")
        largest = np.abs(metric).max(initial=0.0)
        if not np.allclose(
            metric, metric.T, rtol=0, atol=1e-6 * largest
        ):  # float32 metrics are symmetric to 1e-7
            raise ValueError(
                f"{label}: expected a symmetric metric, got one that differs from its transpose"
            )
        gradient = np.concatenate([to_numpy(p.grad).reshape(-1) for p in parameters])
        damping = np.concatenate(
            [np.full(p.numel(), value) for p, value in zip(parameters, lam, strict=True)]
        )
        direction = _natural_direction(label, metric, gradient, damping)
        pieces = np.split(direction, np.cumsum([p.numel() for p in parameters])[:-1])
        return {
            p: torch.from_numpy(piece).reshape(p.shape).to(p)
            for p, piece in zip(parameters, pieces, strict=True)
        }

    # -- checks -------------------------------------------------------------------------------------------------

    def _evaluate(self, closure: Callable[[], Any] | None) -> tuple[Any, Callable[..., Any] | None]:
        if closure is None:
            return None, None
        with torch.enable_grad():
            result = closure()
        if not isinstance(result, tuple | list):
            return result, None
        if len(result) != 2 or not callable(result[1]):
            raise TypeError(
                "closure: expected it to return the loss or (loss, metric_tensor_fn), got "
                f"({', '.join(type(r).__name__ for r in result)})"
            )
        return result[0], result[1]

    def _check_groups(self) -> None:
        for group in self.param_groups:
            for name in ("lr", "lam"):
                _check_number(name, group[name])
            for k, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                name = self._names.get(p, f"parameter {k}")
                if p.grad.is_sparse:
                    raise TypeError(
                        f"{name}: expected a dense gradient, got a sparse one; use sparse=False"
                    )
                if p.is_complex():
                    raise TypeError(
                        f"{name}: expected a real parameter, got {p.dtype}; use torch.view_as_real"
                    )
                if not torch.isfinite(p.grad).all():
                    raise NumericalError(f"{name}: expected a finite gradient, got NaN or infinity")


def _check_shapes(name: str, module: Any) -> None:
    for weight, shape in getattr(module, "weight_shapes", {}).items():
        actual = tuple(module.qnode_weights[weight].shape)
        if actual != shape:
            raise ValueError(
                f"{name}.{weight}: expected the shape {shape} of this layer's weight_shapes, got a parameter of shape "
                f"{actual}; layers that share a parameter need the same shape for it"
            )


def _weights(unit: list[tuple[str, Any]]) -> set[torch.Tensor]:
    return {p for _, module in unit for p in module.qnode_weights.values()}


def _positional_count(function: Callable[..., Any]) -> int | None:
    """How many positional arguments a function takes; None for any number."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds for p in parameters)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        raise ValueError(f"{name}: expected one number, got a tensor of shape {tuple(value.shape)}")
    if not 0.0 <= float(value) < float("inf"):
        raise ValueError(f"{name}: expected a finite number >= 0, got {value}")


def _natural_direction(
    label: str, metric: FloatArray, gradient: FloatArray, lam: FloatArray
) -> FloatArray:
    """Solve block by block: weights that the metric does not couple are independent systems."""
    damped = metric + np.diag(lam)
    direction = np.empty_like(gradient)
    for size, indices in _blocks_by_size(metric).items():  # all blocks of one size are one batch
        matrices = damped[indices[:, :, None], indices[:, None, :]]
        try:
            # A pseudo-inverse would hide that a block is singular, and a step along a negative eigenvalue goes uphill.
            direction[indices] = solve(matrices, gradient[indices], method="cholesky")
        except NumericalError as error:
            raise NumericalError(
                f"{label}: a {size} x {size} block of the metric is singular or not positive definite with lam = "
                f"{lam.min():g}; pass a larger lam, e.g. 1e-3 ({error})"
            ) from error
    return direction


def _blocks_by_size(metric: FloatArray) -> dict[int, npt.NDArray[np.intp]]:
    """Connected components of the non-zero pattern: size -> (count, size) indices."""
    label = np.arange(len(metric))
    coupled = metric != 0
    np.fill_diagonal(coupled, True)
    while (
        True
    ):  # the smallest index spreads along couplings; blocks are dense, so one or two rounds suffice
        spread = np.where(coupled, label[None, :], len(metric)).min(axis=1)
        if (spread == label).all():
            break
        label = spread
    groups: dict[int, list[npt.NDArray[np.intp]]] = {}
    for root in np.unique(label):
        members = np.flatnonzero(label == root)
        groups.setdefault(len(members), []).append(members)
    return {size: np.stack(members) for size, members in groups.items()}
