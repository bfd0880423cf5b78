"""Fixtures of all test modules."""

from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def _restore_torch_state() -> Any:
    dtype = torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
