"""Compile, without a GPU, the kernels that a call would launch, and read what the assembler made of them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
}


@dataclass(frozen=True)
class Launch:
    """One kernel launch as the library asked for it."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    warps: int
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@dataclass(frozen=True)
class Compiled:
    """What the assembler reports of a kernel: registers and bytes of local memory a thread, shared bytes a program."""

    registers: int
    spilled: int
    shared: int
    code: bytes


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch, *modules: Any) -> Iterator[list[Launch]]:
    """Collect launches instead of making them; outputs are left as they were allocated."""
    launches: list[Launch] = []

    def record(kernel: Any, programs: int, device_of: Any, *arguments: Any, warps: int = 4, **constants: Any) -> None:
        launches.append(Launch(kernel, programs, arguments, warps, constants))

    with monkeypatch.context() as patch:
        for module in modules:
            patch.setattr(module, "launch", record)
        yield launches


def compile_launch(launch: Launch, capability: int) -> Compiled:
    """Compile as Triton would at this launch, with the same specialisation of its arguments, for another machine."""
    kernel = launch.kernel
    unspecialised = {p.name for p in kernel.params if p.do_not_specialize}
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for index, name in enumerate(kernel.arg_names):
        if name in launch.constants:
            signature[name], constants[(index,)] = "constexpr", launch.constants[name]
            continue
        value = launch.arguments[index]
        if value is None or (isinstance(value, int) and value == 1 and name not in unspecialised):
            signature[name], constants[(index,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = f"*{_TYPES[value.dtype]}"
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0 and name not in unspecialised:
                attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    options = {"num_warps": launch.warps, "num_stages": 1, "enable_fp_fusion": True}
    source = ASTSource(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return _resources(binary.asm["cubin"])


def _resources(code: bytes) -> Compiled:
    report = _tool("cuobjdump", "-res-usage", code)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", report)
    assert found is not None, report
    registers, stack, shared, local = map(int, found.groups())
    return Compiled(registers, stack + local, shared, code)


def disassemble(compiled: Compiled) -> str:
    """The machine instructions."""
    return _tool("nvdisasm", "-c", compiled.code)


def _tool(name: str, option: str, code: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        return subprocess.run([_TOOLS / name, option, file.name], capture_output=True, text=True, check=True).stdout


def launches_of(monkeypatch: pytest.MonkeyPatch, modules: tuple[Any, ...], call: Callable[[], Any]) -> list[Launch]:
    """What `call` would launch."""
    with recorded(monkeypatch, *modules) as launches:
        call()
    return launches
