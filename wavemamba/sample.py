"""`python -m wavemamba.sample`: see `wavemamba.commands.sample`."""

from wavemamba.commands.running import run_module

if __name__ == "__main__":
    run_module("sample")
