"""`python -m wavemamba.evaluate`: see `wavemamba.commands.evaluate`."""

from wavemamba.commands.running import run_module

if __name__ == "__main__":
    run_module("evaluate")
