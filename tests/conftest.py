"""Fixtures of all test modules."""

import signal
from typing import Any

import pytest
import torch

# The tensors here are small, and several processes share the processors.
torch.set_num_threads(1)
# A shell that starts the tests in the background has them ignore interrupts, which some of them are about.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _restore_torch_state() -> Any:
    dtype = torch.get_default_dtype()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
