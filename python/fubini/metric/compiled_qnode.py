"""QNodes as torch functions with a metric: circuits whose weights belong to nobody's module."""

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal

from fubini.circuit.arguments import Argnums
from fubini.metric.functions import metric_tensor
from fubini.nn.qnode_function import QNodeFunction
from fubini.options import Approx, Engine, LayerRule, Reduce

# Metric functions of compiled QNodes, while these live; they do not hold them.
_METRICS: weakref.WeakKeyDictionary[Any, dict[Any, Callable[..., Any]]] = (
    weakref.WeakKeyDictionary()
)


class CompiledQNode(QNodeFunction):
    """What :func:`compiled` returns.

    Attributes:
        qnode: The QNode.
        weights: Names of the arguments that are weights to optimizers; None: they are told by how they are made.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[0] + w[1], wires=1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1))
        >>> energy = fubini.compiled(circuit)
        >>> w = torch.tensor([0.4, 0.3], requires_grad=True)
        >>> energy(w).backward()
        >>> w.grad
        tensor([-0.6442, -0.6442])
        >>> print(energy.explain())
        The native engine runs the compiled circuit: its angles are affine in its tensors.
    """

    def metric(
        self,
        approx: Approx | Literal["auto"] = None,
        *,
        argnum: int | Sequence[int] | None = None,
        argnums: Argnums = None,
        layers: LayerRule = "wires",
        reduce: Reduce = None,
        joint: bool = False,
        engine: Engine = "auto",
    ) -> Callable[..., Any]:
        """Return a function that computes the metric, ``fubini.metric_tensor(qnode, ...)``.

        Args:
            approx: As for :func:`fubini.metric_tensor`, like all that follow.
            argnum: As there.
            argnums: As there.
            layers: As there.
            reduce: As there.
            joint: As there.
            engine: As there.

        Returns:
            A function with the QNode's arguments.
        """
        made = functools.partial(
            metric_tensor,
            self.qnode,
            approx,
            argnum=argnum,
            argnums=argnums,
            layers=layers,
            reduce=reduce,
            joint=joint,
            engine=engine,
        )
        # Closures ask for it in every step.
        words = (approx, layers, reduce, engine)
        if (
            argnum is not None
            or argnums is not None
            or not all(isinstance(w, str | None) for w in words)
        ):
            return made()
        known = _METRICS.setdefault(self, {})
        key = (*words, bool(joint))
        if key not in known:
            known[key] = made()
        return known[key]


def compiled(qnode: Any, weights: str | Sequence[str] | None = None) -> CompiledQNode:
    """Return a QNode as a torch function that runs in the native engine where that can be promised to be right.

    It has the QNode's own signature; torch differentiates it, also twice, by every tensor. All ways of calling it are
    compiled in their first call, by the rules of ``QuantumLayer``, also with one argument of shape (batch, features) or
    (batch,) for data; calls with other batches run the quantum function, and its gates natively. Everything else (shots, noise, NumPy
    arrays, operations that the engine does not know) is the QNode's own matter, called as it is. ``explain()`` says which
    it was.

    To an optimizer every call is one of a layer, whose weights are those arguments that are parameters of the optimizer,
    parts of them, or functions of them and plain numbers; what a network's layers compute is data. So
    ``QNGOptimizer(model)`` gives the weights of ``circuit(x, self.weights)`` in a model's forward their metric, averaged over
    all ``x`` of the step, also of a loop over the rows of a batch; with ``loss=`` they have a Fisher block. Where the two cannot be told apart, ``step()`` asks for
    the argument ``weights``.

    Example::

        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.RY(w[0], 0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[1], 1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1) + 0.5 * qml.X(1))
        >>> energy = fubini.compiled(circuit)
        >>> w = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)
        >>> energy(w).item(), torch.autograd.grad(energy(w), w)[0].tolist()
        (1.0, [0.0, 0.5])
        >>> energy.metric()(w).diagonal().tolist()
        [0.25, 0.25]

    Args:
        qnode: A QNode, interface ``"auto"`` or ``"torch"``.
        weights: Name of the argument that is the weight, or names of several; to optimizers all others are then data.
            None: told by how they are made.

    Returns:
        A function with the QNode's arguments, and with ``metric`` (:func:`fubini.metric_tensor` with its options, a function
        of the same arguments), ``explain`` and ``qnode``. ``fubini.metric_tensor`` and its siblings take it for the QNode.

    Raises:
        TypeError: If qnode is no QNode.
        ValueError: If it has no argument of such a name.
    """
    return CompiledQNode(qnode, weights)
