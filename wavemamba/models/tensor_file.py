"""Safetensors files: read into memory of their own after a look at what they hold, and written."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from wavemamba.errors import CheckpointError

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MOST_HEADER_BYTES = 100_000_000


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write dense CPU tensors and some words beside them as a safetensors file.

    Raises:
        OSError: the file cannot be written.
        CheckpointError: a dtype has no name in the format.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # which keeps all of them aligned
    place = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise CheckpointError(f"{name}: expected a dtype that safetensors files hold, got {tensor.dtype}")
        end = place + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            if tensors[name].numel():
                file.write(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)


class _Entry(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


class TensorFile:
    """A safetensors file, open, whose header has been read and checked; a context that closes it.

    Its name may be given to another file meanwhile: header and tensors are of one file. The tensors are read, never
    mapped: what happens to the file later, a cut or a rewrite, does not reach them.

    Args:
        path: the file.

    Attributes:
        metadata: the words that were saved beside the tensors.

    Raises:
        CheckpointError: the file is missing or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.metadata: dict[str, str] = {}
        self._file = self._opened()
        try:
            self._entries = self._read_header(self._file)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def shapes(self) -> dict[str, Tensor]:
        """The tensors by name on the meta device, which holds no values."""
        return {name: torch.empty(e.shape, dtype=e.dtype, device="meta") for name, e in self._entries.items()}

    def read(self, place: Callable[[Tensor], Tensor] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Read one tensor after the other, as they lie in the file.

        Args:
            place: what to do with each at once, for example to move it to a device.

        Raises:
            CheckpointError: the file is cut short since it was opened.
        """
        for name, entry in sorted(self._entries.items(), key=lambda item: item[1].start):
            tensor = torch.empty(entry.shape, dtype=entry.dtype, device="cpu")
            if tensor.numel():
                self._file.seek(entry.start)
                data = tensor.reshape(-1).view(torch.uint8).numpy()
                if self._file.readinto(data) != data.nbytes:  # type: ignore[attr-defined]  # a buffered file has it
                    raise self._damaged(f"the file ends within {name}")
            yield name, tensor if place is None else place(tensor)

    def _opened(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from error

    def _read_header(self, file: BinaryIO) -> dict[str, _Entry]:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, _MOST_HEADER_BYTES):
            raise self._damaged("it has no header")
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            self.metadata = {str(key): str(value) for key, value in metadata.items()}
            entries = {name: self._entry(name, value, 8 + length) for name, value in header.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self._damaged(f"its header cannot be read ({error})") from error
        end = 8 + length
        for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
            if entry.start != end:
                raise self._damaged(f"{name} does not follow what lies before it")
            end += math.prod(entry.shape) * entry.dtype.itemsize
        if end != size:
            raise self._damaged(f"its header tells of {end:,} bytes, and there are {size:,}")
        return entries

    def _entry(self, name: str, value: Any, base: int) -> _Entry:
        dtype, shape = _DTYPES.get(value["dtype"]), tuple(value["shape"])
        start, end = value["data_offsets"]
        if dtype is None:
            raise self._damaged(f"{name} has the dtype {value['dtype']!r}, which is not known")
        if not all(type(s) is int and s >= 0 for s in (*shape, start, end)):
            raise self._damaged(f"{name} has no proper shape or place")
        if math.prod(shape) * dtype.itemsize != end - start:
            raise self._damaged(f"{name} has the shape {shape} and {end - start:,} bytes")
        return _Entry(dtype, shape, base + start)

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: expected a whole safetensors file, but {reason}; fetch it again")
