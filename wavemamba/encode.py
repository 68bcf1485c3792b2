"""`python -m wavemamba.encode`: see `wavemamba.commands.encode`."""

from wavemamba.commands.running import run_module

if __name__ == "__main__":
    run_module("encode")
