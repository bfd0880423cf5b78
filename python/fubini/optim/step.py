"""Steps: what is evaluated, and in which way a step is taken."""

import time
import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch

from fubini.blocks import distributed
from fubini.nn.random_state import RandomState
from fubini.optim.chain_step import ChainStep
from fubini.optim.checks import check_gradients
from fubini.optim.choices import ENERGY_DAMPING, PER_TERM, better_call
from fubini.optim.closure import Closure, Judge, evaluated, number
from fubini.optim.diagnostics import StepRecord
from fubini.optim.direct import Direct, Taken, is_uniform
from fubini.optim.energy_source import EnergySource
from fubini.optim.energy_sum import EnergyJudge
from fubini.optim.gather import Gatherer, Moving, Source
from fubini.optim.graph_step import GraphStep
from fubini.optim.groups import KINDS, damping_entries
from fubini.optim.length import StepLength
from fubini.optim.metric_history import MetricHistory
from fubini.optim.metric_source import ROUGH, FisherSource
from fubini.optim.policies import DampingPolicy
from fubini.optim.proposal import Proposal
from fubini.optim.step_rules import Armijo
from fubini.optim.trials import curvature_unit, take_step
from fubini.solvers.damping import Absolute, Damping
from fubini.torch_private import uncompiled

Tensor = torch.Tensor
Group = MutableMapping[str, Any]
# Frames between a warning in the first step and its caller, with the decorators that torch puts around step.
_LEVELS = 5


class Stepping(torch.optim.Optimizer):
    """What takes the steps of ``QNGOptimizer``, which makes it: the options are checked."""

    _model: torch.nn.Module | None
    _data_parallel: bool
    _options: dict[str, Any]
    _policy: DampingPolicy | None
    _source: Source
    _chain: ChainStep | None
    _graph: GraphStep | None
    _names: dict[Tensor, str]
    _last: StepRecord | None = None
    _units = 1.0
    _usual: bool  # whether nothing judges, shortens or carries on steps
    _fixed: Damping | None = None  # instead of a policy that nothing lets judge steps
    _forward_only = True  # whether trial steps are judged without a backward pass
    _begun = False  # whether it has taken a step
    _advises = False  # whether nobody asked for the quantum metric

    @uncompiled
    @torch.no_grad()
    def step(self, closure: Closure | None = None, *, targets: Any = None) -> Any:
        """Take one step.

        Everything is computed and checked before the first parameter changes, and ``.grad`` is left as it is. A policy
        or rule that judges the loss after the step evaluates the closure again, with the same random numbers, and
        leaves gradients and batch-norm statistics as the first evaluation left them.

        Args:
            closure: Clears the gradients, computes the loss, calls ``backward``; returns the loss, or
                ``(loss, metric_tensor_fn)``.
            targets: What the loss takes as targets, for ``fisher="empirical"`` where they are not to be inferred from
                the gradient by the outputs.

        Returns:
            The loss that the closure returned first, or None without a closure.

        Raises:
            NumericalError: If a gradient, weight, metric or step is not finite, or a metric is singular with ``lam=0``.
            RuntimeError: If a layer has gradients but no recorded forward pass, passes used different weights, or the
                loss must be evaluated again and there is no closure.
            TypeError: If the closure returns something else, or a gradient is sparse.
            ValueError: If a group's number is out of range, or only some groups maximise where the loss is judged.
        """
        rule = self._options["step_rule"]
        energy = self._options["metric"] == "energy"
        policy = self._policy
        judged = is_judged(rule, policy, closure is not None or energy, self.param_groups)
        found_inf = getattr(self, "found_inf", None)  # GradScaler sets it around the call
        if found_inf is not None and float(found_inf) > 0:
            return None
        if found_inf is not None and targets is None and self._options["fisher"] == "empirical":
            raise ValueError(
                "targets: expected step(targets=...) with fisher='empirical' under a GradScaler, whose scale is in the "
                "gradients by the outputs, got None"
            )
        random = RandomState.now() if judged else None
        scale = getattr(self, "grad_scale", None)
        if scale is not None and "tolerance" in self._options:
            raise ValueError(
                "lam: expected a number with a GradScaler, which changes the gradients' noise, got SignalToNoise"
            )
        loss, metric_fn = evaluated(closure) if closure is not None else (None, None)
        needed = judged and not (energy and closure is None)
        value = number(loss) if needed or loss is not None else None
        self._source.begin(
            self.param_groups,
            self._names,
            loss=value,
            result=loss,
            metric_fn=metric_fn,
            scale=scale,
            closure=closure is not None,
            judged=policy is not None and policy.needs_closure,
        )
        if not self._begun:
            self._begin(metric_fn is not None)
        if metric_fn is not None and "tolerance" in self._options:
            raise ValueError(
                "closure: expected the loss alone with lam=SignalToNoise, got a metric function, which says nothing about "
                "noise"
            )
        start = time.perf_counter()
        plainly = not judged and scale is None
        taken = None
        if plainly and self._chain is not None and metric_fn is None and targets is None:
            taken = self._chain.step(self.param_groups, self.state)
            if taken is None and self._graph is not None:
                taken = self._graph.step(self.param_groups, self.state)
        ready = time.perf_counter()
        if taken is None:
            distributed.together(
                lambda: check_gradients(self.param_groups, self._names),
                self.param_groups[0]["params"][0].device,
            )
            start = time.perf_counter()
            first = self.param_groups[0]
            length = StepLength.of(first) if self._options.get("by_length") else None
            self._source.rough = length is not None and length.damping >= ROUGH
            found = self._gatherer.metric(
                self.param_groups,
                metric_fn,
                step=int(first["steps"]),
                targets=targets,
                state=self.state,
            )
            if found.blocks and self._options.get("reasons"):
                self._units = self._gatherer.units(first["params"][0].device)
            ready = time.perf_counter()
            taken = self._directly(found, length) if plainly else None
        if taken is not None:
            record, after = StepRecord(taken.proposal), taken.length
            record.damping, self._units = taken.lam, taken.units
            record.solve_seconds = time.perf_counter() - ready
        else:
            parts = self._gatherer.parts(found, 1.0 if scale is None else float(scale))
            proposal = Proposal(parts, self.state, self._options["spring"], length, self._units)
            record = StepRecord(lambda: proposal)
            if value is not None:
                record.loss = value
            if parts:
                judge = self._judge(closure, random)
                # What was chosen for an energy judges steps where something evaluates them.
                self._fixed = None
                if judged and judge is None and self._options.get("by_closure"):
                    self._fixed, policy = Absolute(ENERGY_DAMPING * curvature_unit(parts)), None
                elif judged and judge is None:
                    is_judged(rule, policy, False, self.param_groups)
                take_step(record, self._damping_of, policy, rule, judge, energy)
                if judge is not None:
                    self._forward_only = judge.forward_only
            after = proposal.length if record.accepted else None
        record.metric_seconds = ready - start
        record.evaluations += int(closure is not None)
        if value is not None:
            record.loss = value
        self._last = record
        for group in self.param_groups:
            group["steps"] += 1
            if after is not None:
                after.keep(group)
        self._publish()
        return loss

    def _begin(self, has_metric: bool) -> None:
        """Before the first step: what can only be seen now."""
        owned = [p for g in self.param_groups for p in g["params"]]
        # Tensors of the caller's own making are no part of a module that could have layers.
        silent = not any(isinstance(p, torch.nn.Parameter) for p in owned)
        ids = {id(p) for p in owned if p.requires_grad}
        self._source.closure_metric = has_metric
        called = self._source.called
        passed = any(recorder.passes for recorder in self._source.recorders)
        known = self._source.found or passed or has_metric
        if self._model is None and not (known or silent):
            warnings.warn(
                "params: no parameter belongs to a QuantumLayer or TorchLayer, or is a weight of a compiled QNode, and no "
                "closure returns a metric, so every parameter takes the plain gradient step; pass the model, "
                "QNGOptimizer(model, ...), or return (loss, metric_tensor_fn) from the closure",
                stacklevel=_LEVELS,
            )
        if self._model is not None and not known:
            warnings.warn(
                "model: found no QuantumLayer or TorchLayer, and no parameter that is a weight of a compiled QNode; every "
                "parameter takes the plain gradient step",
                stacklevel=_LEVELS,
            )
        if called:
            if self._model is not None and self._advises and not self._source.found:
                others = ids - {id(p) for p in called}
                names = [n for n, p in self._model.named_parameters() if id(p) in others]
                self._advise(names, _LEVELS + 1)
            self._collect()
        distributed.check_same(owned)
        self._begun = True

    def _advise(self, names: list[str], level: int) -> None:
        """Warn about classical parameters under the quantum metric, which nobody asked for."""
        if names:
            warnings.warn(better_call(names), stacklevel=level)

    def _directly(self, found: Moving, length: StepLength | None) -> Taken | None:
        """Take the step by one call of the kernel; None, with nothing changed, where that will not do."""
        groups = self.param_groups
        if not (self._usual and found.blocks and is_uniform(groups)) or distributed.active():
            return None
        lam = float(self._damping_of(groups[0]).lam)
        if lam == 0.0:  # what moves nothing is then an error
            return None
        return self._direct.step(found.blocks, groups, lam, length, self._units)

    def _judge(
        self, closure: Closure | None, random: RandomState | None
    ) -> Judge | EnergyJudge | None:
        if random is None:
            return None
        if isinstance(self._source, EnergySource):
            native = self._source.judge()
            if native is not None:
                return native
        if closure is None:
            return None
        parameters = {p for g in self.param_groups for p in g["params"]}
        if self._model is not None:
            parameters |= set(self._model.parameters())
        return Judge(
            closure,
            random,
            self._model,
            list(parameters),
            self._source.recorders,
            # As the gradients are averaged: DistributedDataParallel counts every process alike.
            weight=1.0 if self._data_parallel else self._gatherer.weight(True),
            maximize=bool(self.param_groups[0]["maximize"]),
            forward_only=self._forward_only,
        )

    def _damping_of(self, group: Group) -> Damping:
        if self._fixed is not None:
            return self._fixed
        if self._policy is not None:
            return self._policy.damping_at(int(group["steps"]))
        if group["damping"] == PER_TERM:
            per_term = float(group["lam"]) * StepLength.of(group).damping
            return Absolute(per_term * self._units)
        return KINDS[group["damping"]](float(group["lam"]))

    def _publish(self) -> None:
        """Show the policy's numbers in the groups, as a scheduler shows lr, so that they are saved with them."""
        if self._policy is None:
            return
        for group in self.param_groups:
            group["policy"] = self._policy.state_dict()
            group.update(damping_entries(self._policy.damping_at(int(group["steps"]))))

    def _prepare(self) -> None:
        """Find out which parameters have which metric."""
        self._names = {}
        for group in self.param_groups:
            if "param_names" in group:
                self._names.update(zip(group["params"], group["param_names"], strict=True))
        if self._model is not None:
            self._names.update({p: name for name, p in self._model.named_parameters()})
        owned = {p: None for g in self.param_groups for p in g["params"]}
        self._source.attach(self, owned.keys())
        self._direct = Direct()
        options = self._options
        self._history = MetricHistory(options["averaging"], options["update_every"])
        self._usual = (
            self._policy is None
            and options["step_rule"] is None
            and not options["spring"]
            and options["metric"] != "energy"
        )
        self._chain = self._graph = None
        once = options["update_every"] == 1
        if self._usual and once and isinstance(self._source, FisherSource):
            self._chain = ChainStep(self._source, self._history, options)
            self._graph = GraphStep(self._source, self._history, options)
        self._collect()

    def _collect(self) -> None:
        """Find out which parameters take the plain gradient, undamped: what is classical under the quantum metric."""
        owned = [p for g in self.param_groups for p in g["params"]]
        undamped: set[Tensor] = set()
        if self._options["metric"] == "quantum" and self._model is not None:
            undamped = set(self._model.parameters())
        elif self._options["metric"] == "quantum" and (self._source.found or self._source.called):
            undamped = set(owned)
        self._gatherer = Gatherer(
            self._source, self._history, undamped, average_gradients=not self._data_parallel
        )


def is_judged(
    rule: Any, policy: DampingPolicy | None, closure: bool, groups: Sequence[Mapping[str, Any]]
) -> bool:
    """Return whether the loss is evaluated again after a step.

    Args:
        rule: The step rule.
        policy: The damping policy.
        closure: Whether there is a closure for that.
        groups: Parameter groups.

    Returns:
        Whether it is.

    Raises:
        RuntimeError: If there is no closure.
        ValueError: If only some of the groups maximise it.
    """
    judge = rule if isinstance(rule, Armijo) else policy
    if judge is None or not (judge is rule or getattr(judge, "needs_closure", False)):
        return False
    if not closure:
        raise RuntimeError(
            f"step: expected a closure, because {type(judge).__name__} evaluates the loss again, got None"
        )
    if len({bool(group["maximize"]) for group in groups}) > 1:
        raise ValueError("maximize: expected the same in all groups where the loss is judged")
    return True
