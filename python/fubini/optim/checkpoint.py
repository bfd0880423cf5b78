"""What is saved of the optimizer and its copies: states to the bit, older checkpoints, models that stay with it."""

import itertools
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch

from fubini.optim.metric_source import make_source
from fubini.optim.momentum import with_velocities
from fubini.optim.step import Stepping


class Checkpointed(Stepping):
    """An optimizer whose state can be saved, loaded, copied and pickled."""

    def state_dict(self) -> dict[str, Any]:
        """Return what must be saved to go on to the bit: numbers and tensors only, for ``torch.save``."""
        self._publish()
        return super().state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state; factors and momenta stay float64 whatever the parameters' dtype.

        Args:
            state_dict: What ``state_dict`` returned.

        Raises:
            TypeError: If it is no dictionary.
            ValueError: If it does not fit the optimizer.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"state_dict: expected what state_dict() returned, got {type(state_dict).__name__}"
            )
        seen: list[Mapping[str, Any]] = []

        def look(_: Any, found: Mapping[str, Any]) -> None:
            seen.append(found)
            if self._policy is not None:
                self._policy.load_state_dict(found["param_groups"][0].get("policy", {}))

        # Other hooks may replace the dictionary: this one runs last, and before anything changes.
        handle = self.register_load_state_dict_pre_hook(look)
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            handle.remove()
        keep_dtypes(seen[-1], self.param_groups, self.state)
        if not self._options["spring"]:
            with_velocities(self.param_groups, self.state)
        self._history.forget()

    def __getstate__(self) -> dict[str, Any]:
        """Keep the model and the options, so that a deep copy or pickle of the optimizer finds its layers again."""
        self._publish()
        state: dict[str, Any] = super().__getstate__()
        own = ("_model", "_options", "_policy", "_data_parallel")
        return {**state, **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # of older checkpoints
            usual = {"steps": 0, "momentum": 0.0, "weight_decay": 0.0, "maximize": False}
            group.update({"policy": {}, "damping": "absolute", **usual, **group})
        if "_model" in state:  # absent where load_state_dict calls this with the groups only
            self._source = make_source(self._model, self._options)
            self._prepare()


def keep_dtypes(
    saved: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]],
    state: MutableMapping[torch.Tensor, Any],
) -> None:
    """Take the tensors of a state as they were saved; torch has cast them to the parameters' dtype.

    Args:
        saved: What was loaded.
        groups: Parameter groups.
        state: The optimizer's, changed here.
    """
    numbers = itertools.chain.from_iterable(group["params"] for group in saved["param_groups"])
    parameters = itertools.chain.from_iterable(group["params"] for group in groups)
    for index, p in zip(numbers, parameters, strict=True):
        for key, value in saved["state"].get(index, {}).items():
            if isinstance(value, torch.Tensor):
                state[p][key] = value.detach().clone().to(p.device)
