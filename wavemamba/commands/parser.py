"""Command lines that start from a YAML file, and say so when a name is wrong."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from wavemamba.errors import ConfigError
from wavemamba.names import nearest as nearest_names


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the description's lines and names every default."""


class RecipeParser(argparse.ArgumentParser):
    """An argument parser with `--recipe FILE.yaml`, whose entries are the parser's own options.

    The file maps option names (`batch-size` or `batch_size`) to values; what the command line says wins. Its values
    go through the same types and choices as the command line's. A mapping becomes `name=value` words, `false` becomes
    `--no-name`, `null` stands for "not given". Options are never abbreviated: a misspelt one is an error which names
    the nearest.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **settings)
        self.add_argument("--recipe", metavar="FILE.yaml", help="options from a YAML file; the command line wins")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse `arguments`, after those of the recipe that they name.

        Raises:
            ConfigError: the recipe is missing, is no mapping, or holds an unknown name.
        """
        known = {option for action in self._actions for option in action.option_strings}
        wrong = [word for word in arguments if word.startswith("--") and word.partition("=")[0] not in known]
        if wrong:  # before anything is said to be missing
            self.error(f"unrecognized arguments: {' '.join(wrong)}")
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--recipe")
        path = first.parse_known_args(list(arguments))[0].recipe
        return self.parse_args([*(self._words(Path(path)) if path else ()), *arguments])

    def error(self, message: str) -> Any:
        """Print `message`, with the nearest option where one was misspelt, and exit with status 2."""
        if message.startswith("unrecognized arguments: "):
            known = [option for action in self._actions for option in action.option_strings]
            wrong = next((word for word in message.split()[2:] if word.startswith("--")), "")
            nearest = nearest_names(wrong.split("=")[0], known)
            message += f" (did you mean {nearest[0]}?)" if nearest else ""
        super().error(message)

    def _words(self, path: Path) -> list[str]:
        import yaml  # type: ignore[import-untyped, unused-ignore]  # stubs are a package of their own

        try:
            entries = yaml.safe_load(path.read_text()) or {}
        except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: expected a readable YAML recipe ({error})") from error
        if not isinstance(entries, dict):
            raise ConfigError(f"{path}: expected a mapping of option names to values, got {type(entries).__name__}")
        options = {
            option.removeprefix("--"): action
            for action in self._actions
            for option in action.option_strings
            if option.startswith("--") and action.dest not in ("help", "recipe")
        }
        words = []
        for key, value in entries.items():
            if value is None:
                continue  # "null" in YAML: not given
            name = str(key).replace("_", "-")
            if name not in options:
                nearest = nearest_names(name, options)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose from {', '.join(sorted(options))}"
                raise ConfigError(f"{path}: unknown option {key!r}; {hint}")
            words += _as_words(name, value)
        return words


def _as_words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, dict):
        return [f"--{name}", *(f"{key}={item}" for key, item in value.items())]
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)] if value else []
    return [f"--{name}={value}"]


def number(
    kind: type[int] | type[float], least: float, below: float = float("inf"), *, above: bool = False
) -> Callable[[str], float]:
    """A type for `add_argument`: a finite number of `kind` in `[least, below)`, or `(least, below)` with `above`."""
    article = "an integer" if kind is int else "a number"
    wanted = f"{article} {'>' if above else '>='} {least}" + (f" and < {below}" if below < float("inf") else "")

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}") from None
        if not (value > least if above else value >= least) or not value < below:
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text}")
        return value

    return convert


def device(text: str) -> torch.device:
    """A type for `add_argument`: a device that is there."""
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"expected a device such as cpu or cuda:0, got {text!r} ({reason})") from None


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`["dim=64", "img_size=(8, 8)", "scan=snake"]` as a dictionary; values are Python literals, or else words.

    Raises:
        ConfigError: a word without `=`.
    """
    import ast

    overrides: dict[str, Any] = {}
    for word in words:
        name, separator, text = word.partition("=")
        if not separator or not name:
            raise ConfigError(f"override: expected name=value, got {word!r}")
        try:
            overrides[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            overrides[name] = text
    return overrides
