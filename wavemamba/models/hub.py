"""Finding the files of a model: in a folder, or on the Hugging Face hub."""

from __future__ import annotations

import os
from pathlib import Path

from wavemamba.errors import CheckpointError


def find_file(source: str | os.PathLike[str], name: str, revision: str | None = None) -> str:
    """The path of a file in a folder, or, where `source` is no folder, in a repository of the hub.

    Args:
        source: a folder, or the id of a repository.
        name: the file.
        revision: the commit, tag or branch of the repository; None: the newest.

    Raises:
        CheckpointError: there is no such file.
    """
    folder = path_of(source)
    if (folder / name).is_file():
        return str(folder / name)
    if folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder with {name}, which is missing; save the model there again")
    return download(str(source), name, revision)


def path_of(source: str | os.PathLike[str]) -> Path:
    """A path that the system can look up.

    Raises:
        CheckpointError: it is no path, for example too long, or with a NUL in it.
    """
    try:
        path = Path(source)
        path.stat()
    except FileNotFoundError:
        return path
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{source!r}: expected a path that can be read, got: {error}; check it") from error
    return path


def download(repository: str, name: str, revision: str | None = None, cache_dir: str | Path | None = None) -> str:
    """Fetch a file from the Hugging Face hub, or its cache; what fails is a `CheckpointError`."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return str(huggingface_hub.hf_hub_download(repository, name, revision=revision, cache_dir=cache_dir))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{repository}: expected a folder, or a hub repository with {name} that can be read, got: {error}"
        ) from error
