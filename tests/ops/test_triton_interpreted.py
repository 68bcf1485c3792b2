"""The GPU tests of the Triton kernels, run small by Triton's interpreter, in processes of their own.

Triton decides when a kernel is defined whether it will be interpreted, so that a process does one or the other.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
FOLDER = Path(__file__).parents[1] / "cuda"


CHOSEN = "triton and (empty_batch or infinite_steps or largest)"


@pytest.mark.parametrize(
    "choice",
    [
        ["test_selective_scan.py"],
        ["test_causal_conv1d.py", "test_haar_map.py", "test_library_ops.py"],
        ["../ops/test_inputs.py", "-k", CHOSEN],
    ],
    ids=["scan", "others", "inputs"],
)
def test_interpreted(choice):
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [str(FOLDER / part) if part.endswith(".py") else part for part in choice]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    if " passed" not in result.stdout:
        pytest.skip(result.stdout.splitlines()[-1])
