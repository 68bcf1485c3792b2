"""These tests run the Triton kernels on a GPU; with TRITON_INTERPRET=1 the same ones run small, on the CPU."""

import importlib
import os
from pathlib import Path

import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(items):
    missing = pytest.mark.skip(reason="needs an NVIDIA GPU; tests/ops/test_triton_interpreted.py runs it interpreted")
    only_gpu = pytest.mark.skip(reason="means nothing to Triton's interpreter")
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if not INTERPRETING:
            item.add_marker(pytest.mark.cuda)
            if not torch.cuda.is_available():
                item.add_marker(missing)
        elif item.get_closest_marker("cuda"):
            item.add_marker(only_gpu)


@pytest.fixture(scope="session")
def device():
    if not INTERPRETING:
        return torch.device("cuda")
    _expect_working_interpreter()
    return torch.device("cpu")


def _expect_working_interpreter():
    """Releases of Triton before 3.7 cannot interpret a loop over a tensor's value with NumPy 2.4 and later."""
    from triton.runtime.errors import InterpreterError

    from wavemamba.errors import BackendUnavailable
    from wavemamba.ops import selective_scan

    one = torch.ones(1, 1, 1)
    try:
        selective_scan(one, one, -one[0], one, one, backend="triton")
    except InterpreterError as error:
        if "0-dimensional" not in str(error):
            raise
        pytest.skip("this Triton's interpreter does not run with this NumPy: install numpy<2.4")
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """The interpreter is slow, and a program takes whole chunks: make them short, and cross their borders often."""
    if INTERPRETING:
        monkeypatch.setattr(importlib.import_module("wavemamba.ops.selective_scan.triton_plan"), "CHUNK", 8)


@pytest.fixture(scope="session")
def sizes():
    """Picks the size of a case: (for the interpreter, for a GPU)."""
    return lambda small, large: small if INTERPRETING else large
