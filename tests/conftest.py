"""Fixtures of all test modules."""

from typing import Any

import pytest
import torch

# The tensors here are small, and several processes share the processors.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _restore_torch_state() -> Any:
    dtype = torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
