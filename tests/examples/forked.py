"""Training runs in processes of their own that start at once: forked from a server which has trained one step."""

import os
import sys
import tempfile

from examples.tiny_runs import ROOT, TINY

sys.path.insert(0, str(ROOT / "examples"))


def train(arguments, output):
    """What a child process does: run the script with its prints in the file `output`, and exit with its status."""
    import torch
    import train_dimsum

    torch.set_num_threads(1)
    with open(output, "a", buffering=1) as file:
        sys.stdout = sys.stderr = file
        status = train_dimsum.main(arguments)
    os._exit(status)


class Forked:
    """A training run with the manners of `subprocess.Popen`."""

    def __init__(self, context, arguments, output):
        self.process = context.Process(target=train, args=(arguments, str(output)))
        self.process.start()
        self.pid, self.kill = self.process.pid, self.process.kill

    def poll(self):
        return self.process.exitcode

    def wait(self, timeout=None):
        self.process.join(timeout)
        return self.process.exitcode


def _train_a_step():
    import train_dimsum
    from accelerate.state import AcceleratorState, GradientState

    with tempfile.TemporaryDirectory() as folder:
        options = ["--steps=1", "--batch-size=4", "--accumulate=2", "--threads=1", "--sample-steps=1", "--quiet"]
        train_dimsum.main(["--data=digits", *TINY, *options, f"--out={folder}"])
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


if "forkserver" in " ".join(sys.orig_argv):
    _train_a_step()
