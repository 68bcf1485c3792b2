"""`python -m wavemamba.train`: see `wavemamba.commands.train`."""

from wavemamba.commands.running import run_module

if __name__ == "__main__":
    run_module("train")
