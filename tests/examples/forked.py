"""Training runs in processes of their own that start at once: forked from a server which has trained one step."""

import multiprocessing
import os
import sys
import tempfile

from examples.tiny_runs import ROOT, TINY, fresh_accelerate

sys.path.insert(0, str(ROOT / "examples"))


def train(arguments, output):
    """What a child process does: run the script with its prints in the file `output`, and exit with its status."""
    import torch
    import train_dimsum

    os.setpgid(0, 0)  # a group of its own, with its loader workers
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as the script's own loaders on Linux, not the server's way
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

    with tempfile.TemporaryDirectory() as folder:
        options = ["--steps=1", "--batch-size=4", "--accumulate=2", "--threads=1", "--sample-steps=1", "--quiet"]
        train_dimsum.main(["--data=digits", *TINY, *options, f"--out={folder}"])
    fresh_accelerate()


if "forkserver" in " ".join(sys.orig_argv):
    _train_a_step()
