"""Networks of this library as ONNX files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wavemamba.errors import BackendUnavailable, ConfigError, ExportError, WavemambaError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node
    from torch.onnx import ONNXProgram

__all__ = ["export_onnx", "translations"]

Translations = Mapping[Callable[..., Any], Callable[..., Any]]


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What the operators of this library are in ONNX, for `torch.onnx.export(custom_translation_table=...)`.

    Raises:
        BackendUnavailable: onnx or onnxscript is not installed.
    """
    try:
        from wavemamba.integrations.onnx_operators import TRANSLATIONS
    except ImportError as error:
        raise BackendUnavailable(
            f"onnx: expected onnx and onnxscript to be installed ({error}); pip install 'wavemamba[onnx]'"
        ) from error
    return dict(TRANSLATIONS)


def export_onnx(
    module: nn.Module | ExportedProgram,
    args: Tensor | tuple[Any, ...] = (),
    path: str | os.PathLike[str] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    opset_version: int | None = None,
    custom_translations: Translations | None = None,
) -> ONNXProgram:
    """Turn a block, a model, or any module built from them into ONNX, and write it to a file.

    The selective scan is one `Scan`, for any batch and length; scan orders are constants, so that the sides of a grid
    that is walked in another order than "raster" are fixed. Sums are float32, as in the kernels.

    Args:
        module: in evaluation mode; or an exported program, which holds its arguments and shapes.
        args: an example of its arguments, with two or more entries along every side that is to be open.
        path: the file to write; weights beyond 1.5 GB come in a file beside it. None: write nothing.
        kwargs: an example of its arguments by name.
        dynamic_shapes: which sides are open, as `torch.export.export` takes it: `{"x": {0: Dim("batch")}}`.
        input_names: names of the tensors that go in; None: those of the arguments.
        output_names: names of what comes out; None: "output", or "output_0", "output_1", ...
        opset_version: of ONNX; None: PyTorch's choice.
        custom_translations: what further operators are in ONNX, as `torch.onnx.export` takes them.

    Returns:
        PyTorch's program, which holds the model and can be called.

    Raises:
        BackendUnavailable: onnx or onnxscript is not installed.
        ConfigError: the module is in training mode, or an exported program comes with arguments.
        ExportError: an operator has no form in ONNX (it is named with the block that holds it), the module cannot be
            traced, or the file cannot be written.
    """
    table = translations() | dict(custom_translations or {})
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    program = _captured(module, args, kwargs, dynamic_shapes)
    _expect_translatable(program)
    outputs = len(program.graph_signature.user_outputs)
    names = ["output"] if outputs == 1 else [f"output_{number}" for number in range(outputs)]
    try:
        exported = torch.onnx.export(
            program,
            custom_translation_table=table,
            input_names=list(input_names or (node.name for node in _inputs(program))),
            output_names=list(output_names or names),
            dynamic_shapes=_axis_names(program, dynamic_shapes),
            opset_version=opset_version,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise _without_translation(error) from error
    assert exported is not None
    _forget_origins(exported)
    if path is not None:
        _write(exported, Path(path))
    return exported


def _captured(
    module: nn.Module | ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> ExportedProgram:
    from torch.export import ExportedProgram, export

    if isinstance(module, ExportedProgram):
        if args or kwargs or dynamic_shapes is not None:
            raise ConfigError(
                "args, kwargs, dynamic_shapes: expected none with an exported program, which holds its own, got some; "
                "leave them out, or pass the module"
            )
        return module
    if not isinstance(module, nn.Module):
        raise ConfigError(f"module: expected an nn.Module or an exported program, got {type(module).__name__}")
    if any(part.training for part in module.modules()):
        raise ConfigError(
            "module: expected evaluation mode, as a file keeps what a module does in training, got training mode; call "
            "module.eval()"
        )
    try:
        with torch.no_grad():
            return export(module, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes)
    except WavemambaError:
        raise
    except Exception as error:
        raise ExportError(
            f"{type(module).__name__}: expected a module that torch.export can trace with these arguments, got: "
            f"{error}; an open side needs two or more entries in the example"
        ) from error


def _expect_translatable(program: ExportedProgram) -> None:
    """Raise `ExportError` where an operator of this library is called in a way that ONNX has no form for."""
    ops = torch.ops.wavemamba
    for node in program.graph.nodes:
        given = _arguments(node)
        if node.target is ops.scan_permutation.default and not all(isinstance(given[side], int) for side in "HW"):
            raise ExportError(
                f"{_place(node)}: expected fixed sides H and W, as a scan order is a constant in ONNX, got open ones "
                f"with the order {given['reference']!r}; leave the batch alone open and write a file a grid, or walk "
                "the grid in 'raster'"
            )
        if node.target in (ops.selective_scan.default, ops.causal_conv1d.default) and given["seq_idx"] is not None:
            raise ExportError(
                f"{_place(node)}: expected one sequence a row, as ONNX has no form for seq_idx, got packed ones; give "
                "each sequence a row of its own"
            )


def _arguments(node: Node) -> dict[str, Any]:
    """The arguments of an operator by their names; empty for another node."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    names = [argument.name for argument in node.target._schema.arguments]
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _place(node: Node) -> str:
    """The module that called an operator, by its path and class."""
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    if not modules:
        return "module"
    path, kind = modules[-1]
    name = kind if isinstance(kind, str) else kind.__qualname__
    return f"{path or 'module'} ({name.rpartition('.')[2]})"


def _without_translation(error: Exception) -> ExportError:
    """The error that names the operator on which PyTorch's translation to ONNX stopped, and its module."""
    for node in _nodes_held(error):
        if f"%{node.name} : " in str(error):
            return ExportError(
                f"{_place(node)}: expected operators that ONNX has, got {node.target}; replace it in that module, or "
                "say in custom_translations what it is in ONNX"
            )
    return ExportError(f"onnx: expected a program that PyTorch can translate, got: {error}")


def _nodes_held(error: BaseException | None) -> Iterator[Node]:
    """The nodes that the functions held through which an error came: PyTorch decomposes a program of its own."""
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            yield from (value for value in trace.tb_frame.f_locals.values() if isinstance(value, torch.fx.Node))
            trace = trace.tb_next
        error = error.__cause__


def _inputs(program: ExportedProgram) -> Iterator[Node]:
    """The tensors that go into a program."""
    names = program.graph_signature.user_inputs
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names and isinstance(node.meta["val"], Tensor):
            yield node


def _axis_names(program: ExportedProgram, dynamic_shapes: Any) -> Any:
    """For every tensor that goes in, the names that the caller gave its open sides, each size named once."""
    from torch.export import Dim

    names = program.graph_signature.user_inputs
    if isinstance(dynamic_shapes, (tuple, list)) and len(dynamic_shapes) == len(names):
        dynamic_shapes = dict(zip(names, dynamic_shapes, strict=True))
    if not isinstance(dynamic_shapes, dict):
        return None
    named: set[str] = set()
    axes: list[dict[int, str]] = []
    for node in _inputs(program):
        sides = dynamic_shapes.get(node.name) or {}
        sides = sides if isinstance(sides, dict) else dict(enumerate(sides))
        axes.append({})
        for axis, dim in sides.items():
            size = str(node.meta["val"].shape[axis])
            if isinstance(dim, Dim) and size not in named:
                named.add(size)
                axes[-1][axis] = dim.__name__
    return tuple(axes)


def _forget_origins(exported: ONNXProgram) -> None:
    """Drop the notes on where each node comes from: paths of this machine, and most of a small file."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(exported.model)


def _write(exported: ONNXProgram, path: Path) -> None:
    """Write a file, and its weights beside it where they are large; what was there stays until they are whole."""
    try:
        with TemporaryDirectory(prefix=".writing-", dir=path.parent) as aside:
            exported.save(Path(aside, path.name))
            for file in sorted(Path(aside).iterdir(), key=lambda file: file.name == path.name):  # the model last
                os.replace(file, path.parent / file.name)
    except OSError as error:
        raise ExportError(f"{path}: expected a file that can be written, got: {error}; give another path") from error
