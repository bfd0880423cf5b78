"""The natural gradient as a torch optimizer for hybrid models."""

from collections.abc import Iterable
from typing import Any, Literal

import torch

from fubini.blocks import distributed
from fubini.devices.signal_to_noise import SignalToNoise
from fubini.optim.checkpoint import Checkpointed
from fubini.optim.checks import check_parameters, listed
from fubini.optim.choices import PER_TERM, choose, without_metric
from fubini.optim.groups import (
    check_options,
    check_signal_to_noise,
    checked_group,
    damping_entries,
    group_damping,
    named_tensors,
)
from fubini.optim.length import StepLength
from fubini.optim.metric_source import Metric, make_source
from fubini.optim.momentum import as_momentum
from fubini.optim.policies import DampingPolicy, Tikhonov, is_policy, own_policy
from fubini.optim.step_rules import Armijo, TrustRegion
from fubini.options import Approx, LayerRule
from fubini.torch_private import TAKES_NAMES, load_compiler


class QNGOptimizer(Checkpointed):
    r"""Natural gradient descent for hybrid models, :math:`\theta \leftarrow \theta - \eta\,(G + \lambda I)^{-1} \nabla L`.

    What to take:

    ====================================  ==========================================================================
    you have                              take
    ====================================  ==========================================================================
    a hybrid classifier                   ``QNGOptimizer(model, loss=torch.nn.CrossEntropyLoss())``, or
                                          ``BCEWithLogitsLoss()``
    a regression                          ``QNGOptimizer(model, loss=torch.nn.MSELoss())``
    a regression with few parameters      besides, ``approx=None``: dearer steps, lower loss
    large classical layers                the same call: they take Kronecker factors by themselves
    an energy, a circuit alone            ``QNGOptimizer(layer, metric="energy")``, ``layer()`` the loss; no closure, no
                                          number; without torch around it, ``fubini.minimize``
    a loss that is a function of          ``QNGOptimizer(layer, 1.0, approx=None, lam=LevenbergMarquardt())`` with a
    energies                              closure
    bare parameters and a QNode           the same with ``[params]`` for the layer and ``fubini.compiled(qnode)``, or a
                                          closure as below
    shots, hardware                       ``QNGOptimizer(model, metric="quantum", lam=SignalToNoise())``; for one
                                          expectation value ``ShotQNGOptimizer``
    ====================================  ==========================================================================

    With ``loss=`` no number is needed. The metric is the Fisher information of the loss by blocks, averaged over steps
    (.8), with damping 0.01 for each term of the loss. A step is lr = 0.5 times the direction d, but no longer than 0.25
    in the damped metric, ``sqrt(d . (G + D) d)``; the share falls as the root of the steps after some hundred, the radius
    after some ten. The unit is that of the loss, nats; for ``MSELoss`` it is half the length of the first direction, so
    that the scale of the targets does not matter. The damping falls, down to a thousandth, with the lengths (their root
    mean square), so that losses without noise are solved to the end. See ``fubini.optim.length``. Steps do not depend on the
    scale or the reduction of the loss, and lr scales them, under schedules too: no schedule is needed. Whatever is given is
    kept, and ``explain()`` says what was chosen and why. A policy or rule that judges the loss after the step,
    ``LevenbergMarquardt`` or ``Armijo``, begins from the full step, lr = 1, without averaging; with another
    ``step_rule``, None included, or ``Spring``, steps are lr times d, with lr = 0.1.

    What G is:

    - ``metric="quantum"``: every ``QuantumLayer`` or ``qml.qnn.TorchLayer`` in the model gets its own Fubini-Study metric
      averaged over the inputs that the layer saw in the passes whose gradients are being applied (behind any classical
      layers), :math:`g = \frac1B \sum_b J_b^T g_b J_b` (Stokes et al. 2020, arXiv:1909.02108). Layers that share a
      parameter are treated together, their metrics added. Calls of ``fubini.compiled(qnode)`` with the same parameters for
      weights are a layer too. All other parameters of the model take the plain gradient.
    - ``metric="fisher"``: the Fisher information of the model's outputs, quantum and classical layers alike, in units of
      the loss; see ``fubini.fisher.blocks``. The optimizer runs the model once more on the inputs of those passes,
      without disturbing random numbers or batch-norm statistics.
    - ``metric="hybrid"``: as ``"fisher"``, with the Fubini-Study metric of each quantum layer in units of the loss instead.
    - ``metric="energy"``: where the loss is the expectation value E of one observable H, the Gauss-Newton part of its
      Hessian, :math:`B_{ij} = 2\,\mathrm{Re}\,\langle\partial_i\psi|P(H - E)P|\partial_j\psi\rangle` with
      :math:`P = 1 - |\psi\rangle\langle\psi|`: Rayleigh-Gauss-Newton (arXiv:2507.10835; Peng and Chan 2025, Phys. Rev.
      Research 7, 043351, for neural states), see ``EnergyProblem.curvature``. Near a minimum it is the Hessian, so that
      steps with lr = 1, the default, converge superlinearly; B has a scale of its own. Without lam, Levenberg-Marquardt
      on :math:`\mu I` raises the damping until B is positive and E falls; the kernel evaluates trial energies, so that
      no closure is needed (one is where weights are computed from parameters; without it the damping is then a tenth of
      the largest curvature along an axis). With a number for lam that is the damping, raised to twice the size of the
      lowest eigenvalue of B where that is negative and lam too small for it. The loss may be a sum of such energies,
      each of a circuit of its own, plus a constant, or minus that; a number times it where a closure returns it. All else
      is refused before anything changes: data, several expectation values, probabilities, variances, shots, circuits on
      devices, classical layers with a gradient, other functions of E. Up to 1500 numbers B is a matrix, above that
      products in conjugate gradients; ``approx=None`` makes it a matrix in any case.

    For energies, ``metric="energy"`` is what to take: critical Ising rings of 8, 10, 12 and 14 spins take 24, 31, 35 and 48
    steps to a relative error of 1e-8 (medians of 10 starts, ``python bench/run.py --only energies``), where the quantum metric
    with ``LevenbergMarquardt`` takes 27, 40, 48 and 63. Where there are local minima, on MaxCut and spin chains with a
    hardware-efficient ansatz, starts end in the lowest ones about equally often. Changing from the quantum metric to the
    curvature once that is positive gained nothing over it.

    Where with ``loss=`` the metric is averaged (by at least .8), a circuit with several results is so large that its Jacobian
    would cost more than the gradient, and steps are still long (the damping has not fallen below .3 of lam), the curvature of
    each datum by these results enters by its rows with random signs, one reverse sweep instead of one for each result: the
    mean over the signs is exact, they differ from step to step, and the random numbers of torch stay as they are.

    The metric is taken at the weights that ``step`` finds. What passed through is recorded where each quantum layer
    evaluates its circuit, for ``metric="quantum"``, whose layers then do not have to run again, or by one forward hook on
    the model. A pass counts if the gradients that it brought reached ``.grad``. Weights of a quantum layer that are
    computed (parametrised, pruned) have their metric pulled back to the parameters that they are computed from.

    Weights of a layer that move no state, such as coefficients of an observable, take the plain step, lr times the
    gradient; so do, with ``loss=``, weights whose rows of the Fisher matrix are zero to the last digit, as where a softmax
    is saturated and still wrong, so that the damping does not divide their gradient. Bare tensors that belong to no known layer and are no weights of a compiled QNode have the identity for a
    metric: they take the plain gradient, damped like the others, ``grad / (1 + lam)``.

    Ways of use::

        opt = QNGOptimizer(model, loss=loss_fn)
        opt.zero_grad(); loss_fn(model(x), y).backward(); opt.step()

        energy = fubini.compiled(circuit)
        opt = QNGOptimizer([params], lr=0.05)
        opt.zero_grad(); energy(params).backward(); opt.step()

        opt = QNGOptimizer([params], lr=0.05)
        def closure():
            opt.zero_grad(); loss = circuit(params); loss.backward()
            return loss, fubini.metric_tensor(circuit, approx="block-diag")
        opt.step(closure)

    In the last, the metric function is called with the optimizer's parameters that have no other metric, in order, as
    many as it takes; it returns what ``qml.metric_tensor`` returns. Parameters beyond take the plain gradient.

    With ``torch.distributed`` initialised, gradients and metrics are averaged over all processes, each weighted with the
    number of inputs it saw, so that an uneven last batch counts as it should; every process must call ``step``. A model
    in ``DistributedDataParallel`` brings averaged gradients already, in which every process counts alike: scale its loss
    by ``inputs here * processes / inputs of all`` when batches are uneven.

    Weight decay is decoupled from the gradient, as in AdamW: it does not go through the inverse metric. With several
    forward passes per step (gradient accumulation) the metric is that of all their inputs together. ``GradScaler`` works
    as with any optimizer. The metric is computed outside of autocast. For ``fisher="empirical"`` the labels are inferred from
    the gradient by the outputs; where the loss was scaled (by a ``GradScaler``, or for uneven batches), pass
    ``step(targets=...)``.

    Args:
        params: A module, or parameters or parameter groups as every torch optimizer takes.
        lr: Step size; per group. None chooses it: 0.01 without a loss, 1 with ``metric="energy"``.
        loss: What is minimised: the module that computes it, such as ``torch.nn.CrossEntropyLoss()`` with its reduction,
            weights and smoothing, ``NLLLoss``, ``BCEWithLogitsLoss``, ``MSELoss`` or ``PoissonNLLLoss``; or what
            likelihood takes. Everything that is not given is then chosen for it, see above.
        model: The module whose layers give the metric; needed for a Fisher matrix when params is no module. Else the
            living quantum layers that have any of the parameters are found. Calls of compiled QNodes are found in any case.
        metric: ``"fisher"``, the default with a loss: for every model whose outputs go into such a loss. ``"quantum"``, the
            default without: for circuits alone, energies, losses that have no likelihood, and layers with shots.
            ``"hybrid"``, each circuit's own metric between the Fisher blocks of the others, where circuits are small beside
            the classical layers: on the digits it is as good, on re-uploading circuits with few outputs far worse.
            ``"energy"``, the curvature of a loss that is an energy, see above.
        approx: The default is ``"block-diag"``, and ``"auto"`` with ``metric="energy"``, whose curvature has no blocks.
            ``"block-diag"``, ``"diag"`` or None (full), see ``fubini.metric_tensor``; for a Fisher matrix, blocks are
            layers of the model, and None is the joint matrix of all parameters: take it up to some hundred parameters
            where steps may cost twice, above all for regressions and for models of several circuits and layers in a row,
            whose blocks know nothing of each other. ``"diag"`` where even the blocks are large. ``"auto"``, for circuits
            with hundreds of weights, is the full quantum metric of each layer as a matrix, a factor of it or products
            alone, whichever is predicted to be cheapest; ``explain()`` says which.
        lam: What is added to the metric's diagonal: a number in the metric's units, ``Relative`` or ``Diagonal`` of
            one, both also per group; or a policy for all groups: ``Schedule``, ``LevenbergMarquardt``, ``Tikhonov``; for
            layers with shots, ``SignalToNoise``. None chooses it: 1e-3 without a loss, ``LevenbergMarquardt()`` with
            ``metric="energy"``.
        likelihood: What the outputs mean to the loss, for a Fisher matrix without ``loss=``: to be taken where all numbers
            shall be yours (lr, lam and averaging then have the defaults of a call without a loss). The loss itself, such
            as ``torch.nn.CrossEntropyLoss(reduction="sum")``; ``"categorical"``, ``"bernoulli"`` or ``"gaussian"``, which
            stand for the mean over all data; or an object, for another scale.
        fisher: ``"true"`` or ``"empirical"``.
        samples: Draw so many labels for each input instead of the closed form of the true Fisher matrix.
        fallback: For layers without a rule in a Fisher matrix, see ``fisher_blocks``; None refuses them.
        layers: Which gates form a block of a circuit, see ``fubini.circuit.gate_layers``.
        momentum: A number or ``HeavyBall`` (Momentum-QNG); ``Spring``. The coefficient is per group.
        weight_decay: Decoupled decay; per group.
        maximize: Ascend instead; per group.
        step_rule: ``TrustRegion`` limits the length of the step in the metric; ``Armijo`` shortens it until the loss of
            the closure falls; None takes lr times the direction. ``"auto"`` is None without a loss.
        averaging: Decay of an exponential average of the metric over steps, with bias correction; 0 for none. None
            chooses it: 0 without a loss.
        update_every: Compute the metric anew in every so many-th step only.

    Warns:
        UserWarning: If a model with classical parameters gets the quantum metric because neither loss nor metric was given.

    Raises:
        TypeError: If params is not iterable, model is no module, parameters are complex, the loss has no likelihood.
        ValueError: For a number out of range, an unknown word, options that do not fit the metric, or duplicates.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=1))
        ... def circuit(inputs, w):
        ...     qml.RX(inputs[..., 0], wires=0)
        ...     qml.Rot(*w, wires=0)
        ...     return qml.expval(qml.Z(0))
        >>> layer = fubini.QuantumLayer(circuit, {"w": 3}, torch.nn.init.ones_)
        >>> x = torch.linspace(-1, 1, 16).unsqueeze(1)
        >>> opt = fubini.QNGOptimizer(layer, loss=torch.nn.MSELoss())
        >>> for _ in range(30):
        ...     opt.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(layer(x), torch.sin(x[:, 0]))
        ...     loss.backward()
        ...     opt.step()
        >>> loss.item() < 1e-2
        True
    """

    # GradScaler then leaves the gradients as they are and says how they are scaled.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: torch.nn.Module | Iterable[Any],
        lr: float | None = None,
        *,
        loss: Any = None,
        model: torch.nn.Module | None = None,
        metric: Metric | None = None,
        approx: Approx | Literal["auto", "default"] = "default",
        lam: Any = None,
        likelihood: Any = None,
        fisher: Literal["true", "empirical"] = "true",
        samples: int | None = None,
        fallback: Any = None,
        layers: LayerRule = "wires",
        momentum: Any = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        step_rule: TrustRegion | Armijo | Literal["auto"] | None = "auto",
        averaging: float | None = None,
        update_every: int = 1,
    ) -> None:
        load_compiler()
        if isinstance(params, torch.nn.Module):
            if model is not None and model is not params:
                raise ValueError(
                    "model: expected none besides the module in params, got another module"
                )
            model = params
            params = list(model.named_parameters())
        params = listed(params)
        if model is not None and not isinstance(model, torch.nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        options = choose(
            loss,
            momentum,
            {
                "lr": lr,
                "lam": lam,
                "metric": metric,
                "approx": approx,
                "likelihood": likelihood,
                "fisher": fisher,
                "samples": samples,
                "fallback": fallback,
                "layers": layers,
                "step_rule": step_rule,
                "averaging": averaging,
                "update_every": update_every,
            },
        )
        lr, lam, unit, per_term = (options.pop(n) for n in ("lr", "lam", "unit", "per_term"))
        self._policy: DampingPolicy | None = None
        damping = group_damping(lam)
        if is_policy(lam) and not isinstance(lam, Tikhonov):
            self._policy = own_policy(lam)
        self._data_parallel = isinstance(model, torch.nn.parallel.DistributedDataParallel)
        self._model = distributed.unwrapped(model)
        spring, coefficient = as_momentum(momentum)
        self._options = {**options, "spring": spring}
        check_options(self._options, self._policy)
        if isinstance(lam, SignalToNoise):
            check_signal_to_noise(self._options, self._model)
            self._options["tolerance"] = lam.tolerance
        self._source = make_source(self._model, self._options)
        defaults = {
            "lr": lr,
            "momentum": coefficient,
            "weight_decay": weight_decay,
            "maximize": maximize,
            **damping_entries(damping),
        }
        if per_term:
            defaults["damping"] = PER_TERM
        self._names = {}
        super().__init__(params, defaults)
        for group in self.param_groups:
            group.setdefault("steps", 0)
            group.setdefault("policy", self._policy.state_dict() if self._policy else {})
            if options["by_length"]:
                StepLength.of({"length_unit": unit, **group}).keep(group)
        self._prepare()
        # With SignalToNoise, only the quantum metric will do.
        by_default = metric is None and loss is None and not isinstance(lam, SignalToNoise)
        self._advises = by_default and self._model is not None
        if self._advises and self._model is not None and self._source.found:
            owned = {p for group in self.param_groups for p in group["params"]}
            self._advise(without_metric(self._model, owned), 3)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters.

        Args:
            param_group: ``params``, and optionally ``lr``, ``lam``, ``momentum``, ``weight_decay`` and ``maximize``.

        Raises:
            TypeError: If the group's parameters are complex.
            ValueError: For a number out of range, or a parameter that is there already.
        """
        group = checked_group(param_group, self.defaults, self._policy)
        tensors, names = named_tensors(group["params"])
        if not TAKES_NAMES:
            group["params"] = tensors
        present = [p for g in self.param_groups for p in g["params"]]
        check_parameters([*present, *tensors], {**self._names, **names})
        super().add_param_group(group)
        if hasattr(self, "_history"):  # after construction: they may belong to layers
            first = self.param_groups[0]
            self.param_groups[-1].update(steps=first["steps"], policy=dict(first["policy"]))
            if self._options.get("by_length"):
                StepLength.of(first).keep(self.param_groups[-1])
            self._prepare()

    def __repr__(self) -> str:
        hidden = {"samples", "fallback", "layers", "spring", "tolerance", "by_length"}
        hidden |= {"by_closure", "reasons"}
        used = {n: v for n, v in self._options.items() if n not in hidden and v is not None}
        if self._options.get("reasons"):
            used = {"loss" if n == "likelihood" else n: v for n, v in used.items()}
        if self._options.get("by_length"):
            used["step_rule"] = "auto"
        if self._options["metric"] in ("quantum", "energy"):
            del used["fisher"]
        if self._policy is not None:
            used["lam"] = self._policy
        head = ", ".join(f"{name}={value!r}" for name, value in used.items())
        text = super().__repr__()
        return text.replace("QNGOptimizer (", f"QNGOptimizer ({head}", 1)

    def explain(self) -> str:
        """Say what was chosen for the loss and why, and how the last step solved for each block.

        Returns:
            One line for each choice, then one for each block: which parameters, how many, by which method.
        """
        chosen = self._options.get("reasons", ())
        if self._last is None:
            return "\n".join([*chosen, "No step has been taken yet."])
        lines = [
            f"{info.label or 'parameters'}: {info.size} x {info.size}, {info.method}"
            + (f" in {info.iterations} iterations" if info.iterations else "")
            for info in self._last.proposal.infos
        ]
        none = "No parameter has a metric; all took the plain gradient step."
        return "\n".join([*chosen, *self._source.explain(), *(lines or [none])])

    def diagnostics(self) -> dict[str, float]:
        """Return numbers about the last step; they cost next to nothing unless they are asked for.

        For that, the last step's metric is kept until the next one.

        Returns:
            ``loss`` before the step; ``damping`` (strength, of the first group) and ``scale`` (of the metric, see
            ``LevenbergMarquardt``); ``condition``, the largest condition number of the damped blocks;
            ``predicted_decrease`` of the loss by the quadratic model and ``actual_decrease`` (NaN unless it was
            evaluated again); ``step_length``, the norm of the change in the metric; ``accepted``, 1 or 0;
            ``evaluations`` of the closure, and of energies by the kernel instead; ``metric_seconds``, ``solve_seconds`` (with further evaluations of the
            closure) and ``update_seconds``. Empty before the first step.
        """
        if self._last is None:
            return {}
        with torch.no_grad():
            return self._last.as_dict()
