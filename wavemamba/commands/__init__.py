"""The commands that installed users have: `python -m wavemamba.train`, and so on."""
