"""Run the test files of mamba-ssm and causal-conv1d against `wavemamba.compat`, on the CPU.

    python benchmarks/package_suites.py --mamba-ssm CHECKOUT --causal-conv1d CHECKOUT

Nothing is fetched: a package whose checkout is not given is skipped. Its test files are copied to a temporary folder,
their device is changed from "cuda" to "cpu", their sizes are cut (a CPU is no GPU), and they run where
`wavemamba.compat.install()` has put our modules under the package's name. The summary names the line of every skip:
the files skip arguments that their kernels do not take, such as initial states of a convolution whose channels do not
come last.

Not run, as they call what `wavemamba.compat` does not offer: `test_ssd.py` and the kernels' tests in
`test_determinism.py` (the single Triton kernels below `ssd_combined`), and all tests of Mamba-3. Not run for other
reasons: `test_causal_conv1d_race_condition`, 10,000 runs of one call; and `test_mamba_inner_fn`, which allows float32
an absolute error of 2e-3 in outputs of up to 1e8: the package's reference in float32 is not that close to itself in
float64.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUITES = {
    "mamba-ssm": ("tests/ops/test_selective_scan.py", "tests/ops/triton/test_layernorm_gated.py",
                  "tests/ops/triton/test_selective_state_update.py", "tests/test_determinism.py",
                  "tests/test_generation.py"),
    "causal-conv1d": ("tests/test_causal_conv1d.py",),
}  # fmt: skip
DESELECTED = "not race_condition and not kernel and not mamba_inner_fn"
CONFTEST = """
import wavemamba.compat

wavemamba.compat.install()


def pytest_collection_modifyitems(items):
    items[:] = items[::{every}]
"""


def adapted(source: str) -> str:
    """A test file for the CPU: another device, and sizes that one core gets through."""
    source = re.sub(r"""(["'])cuda\1""", r"\1cpu\1", source)
    source = re.sub(r"\.cuda\(\)", "", source)
    source = re.sub(r"torch\.cuda\.is_available\(\)", "True", source)
    source = re.sub(r"torch\.cuda\.(empty_cache|synchronize)\(\)", "None", source)
    return re.sub(r"\b(2048|4096|1024 \+ 16|1134)\b", "256", source)


def run(package: str, checkout: Path, every: int, arguments: list[str]) -> int:
    """Run one package's files; returns pytest's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "conftest.py").write_text(CONFTEST.replace("{every}", str(every)))
        for name in SUITES[package]:
            (Path(folder) / Path(name).name).write_text(adapted((checkout / name).read_text()))
        print(f"== {package}: {', '.join(SUITES[package])}", flush=True)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rs",
            "-p",
            "no:cacheprovider",
            "-k",
            DESELECTED,
            *arguments,
            folder,
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, check=False, cwd=folder).returncode


def main() -> int:
    """Run what was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for package in SUITES:
        parser.add_argument(f"--{package}", type=Path, help="a checkout of its repository")
    parser.add_argument("--every", type=int, default=1, help="run every so many of the tests alone")
    arguments, rest = parser.parse_known_args()
    worst = 0
    for package in SUITES:
        checkout = getattr(arguments, package.replace("-", "_"))
        if checkout is None:
            print(f"== {package}: skipped, no checkout was given (--{package} PATH)")
        else:
            worst = max(worst, run(package, checkout, arguments.every, rest))
    return worst


if __name__ == "__main__":
    sys.exit(main())
