"""Where every sample of a tar file lies, read from its headers once."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from wavemamba.data.base import shown
from wavemamba.data.sources.image_folder import IMAGE_SUFFIXES
from wavemamba.errors import DataError
from wavemamba.files import write_atomically

INDEX_FOLDER = ".wavemamba-index"
_BLOCK = 512
_LONGEST_LABEL = 4096


@dataclass(frozen=True)
class TarIndex:
    """What is in a tar file, one entry a sample: where its picture lies, and its label as it is written."""

    size: int
    names: list[str]
    starts: list[int]
    sizes: list[int]
    labels: list[str | None]
    skipped: dict[str, int]


def indexed(path: Path, image: str | None, label: str | None) -> TarIndex:
    """What is in a shard, from the index beside it where that fits."""
    kept = path.parent / INDEX_FOLDER / f"{path.name}.{image}.{label}.json"
    try:
        about = path.stat()
    except OSError as error:
        raise DataError(f"{shown(path)}: expected a tar file ({error})") from error
    fits = {"time": about.st_mtime_ns, "bytes": about.st_size}
    try:
        found = json.loads(kept.read_text())
        if found.pop("fits") == fits:
            return TarIndex(**found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # there is none, or another program's: the shard itself is what counts
    shard = _read_headers(path, image, label)
    try:
        kept.parent.mkdir(exist_ok=True)
        write_atomically(kept, json.dumps({"fits": fits, **asdict(shard)}).encode())
    except OSError:
        pass  # beside data that cannot be written, the index lives in memory
    return shard


def _read_headers(path: Path, image: str | None, label: str | None) -> TarIndex:
    samples: dict[str, dict[str, Any]] = {}
    skipped: Counter[str] = Counter()
    end = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK if member.isreg() else archive.offset
                name = PurePosixPath(member.name)
                if any(piece.startswith(".") and piece != "." for piece in name.parts):
                    skipped["hidden names"] += 1
                elif member.isdir():
                    continue
                elif not member.isreg() or member.issparse():
                    skipped["links and special files"] += 1
                else:
                    _sort_in(path, archive, member, (image, label), samples, skipped)
            _check_end(path, end)
    except DataError:  # which is a ValueError
        raise
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        raise DataError(
            f"{shown(path)}: expected an uncompressed tar file that is whole ({type(error).__name__}: {error}); "
            "fetch it again, or unpack .tar.gz to .tar"
        ) from error
    whole = {key: sample for key, sample in samples.items() if "start" in sample}
    skipped["samples without a picture"] += len(samples) - len(whole)
    return TarIndex(
        path.stat().st_size,
        [shown(sample["name"]).replace("\n", "\\n") for sample in whole.values()],
        [sample["start"] for sample in whole.values()],
        [sample["size"] for sample in whole.values()],
        [sample.get("label") for sample in whole.values()],
        {what: count for what, count in skipped.items() if count},
    )


def _sort_in(
    path: Path,
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    suffixes: tuple[str | None, str | None],
    samples: dict[str, dict[str, Any]],
    skipped: Counter[str],
) -> None:
    """Put a member where it belongs: a sample's name ends at the first dot of its last part."""
    folder, _, name = member.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    kind = suffix.lower()
    image, label = suffixes
    is_label = label is not None and kind == label
    if label is not None and kind.endswith(f".{label}"):
        raise DataError(
            f"{shown(path)}: expected names without dots, whose suffix begins at the first one, got "
            f"{shown(member.name)}; rename the members, or say label= (none: one class)"
        )
    is_image = kind == image if image else f".{kind.rpartition('.')[2]}" in IMAGE_SUFFIXES
    if not is_label and not is_image:
        skipped[f".{shown(kind)} members"] += 1
        return
    sample = samples.setdefault(f"{folder}/{stem}", {})
    if ("label" if is_label else "start") in sample:
        raise DataError(
            f"{shown(path)}: expected one picture and one label a sample, got a second one: {shown(member.name)}; "
            "say which suffix is the picture with image="
        )
    if not is_label:
        sample |= {"name": member.name, "start": member.offset_data, "size": member.size}
        return
    if member.size > _LONGEST_LABEL:
        raise DataError(f"{shown(path)}: {shown(member.name)}: expected a label, got {member.size} bytes")
    file = archive.extractfile(member)
    sample["label"] = (file.read() if file else b"").decode("utf-8-sig").strip()


def _check_end(path: Path, end: int) -> None:
    """A tar file ends with blocks of zeros; `tarfile` takes a damaged or cut header for the end, too."""
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(_BLOCK)
    if len(block) < _BLOCK or any(block):
        raise tarfile.ReadError(f"no end mark at byte {end}: cut, or damaged there")
