"""Explicit vectors of float32 for the numba kernels.

numba's own loops leave vectorisation to what the compiler can prove about aliasing, and its scalar `exp` is a call into
libm. Here a value of type `Lanes` is `LANES` neighbouring channels, in registers; LLVM splits it to the width of the
machine (AVX-512, AVX2, NEON). Memory is reached by raw addresses (int64 bytes), which suits strided tensors; numbers in
it are float32, or bfloat16 where "narrow" is said. The callers keep the tensors alive and their bounds right.

Arithmetic carries the `contract` flag alone: multiply-adds fuse, while NaN and infinity keep their meaning, and nothing
is rearranged.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core.imputils import lower_builtin
from numba.core.registry import cpu_target
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

LANES = 32  # two registers of AVX-512: more independent work for the same loads of what lanes share
VECTOR_BYTES = 4 * LANES
SIDE = 8
"""Of a block that `turn_block` transposes: narrow heads have as many channels."""
_CACHE_LINE = 64
_FEATURES = cpu_target.target_context.codegen().magic_tuple()[-1].split(",")
HAS_SCALE = LANES == 32 and all(name in _FEATURES for name in ("+avx512f", "+avx512dq"))
"""Whether numba's target, by default this machine, scales by a power of two in one instruction, which shortens the
exponential."""
FUSED = ("contract",)

FLOAT = ir.FloatType()
INT = ir.IntType(32)
LONG = ir.IntType(64)
VECTOR = ir.VectorType(FLOAT, LANES)
INTS = ir.VectorType(INT, LANES)
_LINE = ir.VectorType(FLOAT, SIDE)
_HALVES = ir.VectorType(ir.IntType(16), LANES)


class Lanes(types.Type):
    """The numba type of a vector of float32."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


lanes = Lanes()


def instruction(emit: Any) -> Any:
    """Numba's decorator for functions that emit LLVM, whose own types know only the emitting side."""
    return intrinsic(emit)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, VECTOR)  # type: ignore[no-untyped-call]  # numba's has no types


def spread(builder: ir.IRBuilder, scalar: ir.Value, kind: ir.VectorType = VECTOR) -> ir.Value:
    """Emit a scalar in every lane of a vector type."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(INT, 0))
    zeros = ir.Constant(ir.VectorType(INT, kind.count), [ir.Constant(INT, 0)] * kind.count)
    return builder.shuffle_vector(first, undefined, zeros)


def _indices(lanes_taken: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(INT, len(lanes_taken)), [ir.Constant(INT, lane) for lane in lanes_taken])


def _take(builder: ir.IRBuilder, value: ir.Value, first: int, width: int) -> ir.Value:
    undefined = ir.Constant(value.type, ir.Undefined)
    return builder.shuffle_vector(value, undefined, _indices(list(range(first, first + width))))


def _pointer(builder: ir.IRBuilder, address: ir.Value, pointee: ir.Type) -> ir.Value:
    return builder.inttoptr(address, pointee.as_pointer())


def _register_operator(
    function: Callable[..., Any], emit: Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]
) -> None:
    @infer_global(function)  # type: ignore[no-untyped-call]  # as above
    class _Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and all(isinstance(arg, Lanes) for arg in args):
                return signature(lanes, lanes, lanes)  # type: ignore[no-untyped-call]  # as above
            return None

    @lower_builtin(function, Lanes, Lanes)  # type: ignore[no-untyped-call,untyped-decorator]  # as above
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, *args)


_register_operator(operator.add, lambda builder, a, b: builder.fadd(a, b, flags=FUSED))
_register_operator(operator.sub, lambda builder, a, b: builder.fsub(a, b, flags=FUSED))
_register_operator(operator.mul, lambda builder, a, b: builder.fmul(a, b, flags=FUSED))
_register_operator(operator.truediv, lambda builder, a, b: builder.fdiv(a, b, flags=FUSED))


@instruction
def load(typing: Any, address: Any) -> Any:
    """`LANES` float32 at an address."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], VECTOR), align=4)

    return lanes(types.int64), codegen


@instruction
def store(typing: Any, address: Any, value: Any) -> Any:
    """Write a vector to an address."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, lanes), codegen


def _every(value: int) -> ir.Constant:
    return ir.Constant(INTS, [ir.Constant(INT, value)] * LANES)


@instruction
def load_narrow(typing: Any, address: Any) -> Any:
    """`LANES` bfloat16 at an address, which are the upper halves of float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        halves = builder.load(_pointer(builder, args[0], _HALVES), align=2)
        return builder.bitcast(builder.shl(builder.zext(halves, INTS), _every(16)), VECTOR)

    return lanes(types.int64), codegen


@instruction
def store_narrow(typing: Any, address: Any, value: Any) -> Any:
    """Write a vector as bfloat16 to an address, rounded to the nearest, ties to even; NaN stays."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[1], INTS)
        odd = builder.and_(builder.lshr(bits, _every(16)), _every(1))
        rounded = builder.lshr(builder.add(builder.add(bits, odd), _every(0x7FFF)), _every(16))
        kept = builder.select(builder.fcmp_unordered("uno", args[1], args[1]), _every(0x7FC0), rounded)
        builder.store(builder.trunc(kept, _HALVES), _pointer(builder, args[0], _HALVES), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, lanes), codegen


@instruction
def copy_half(typing: Any, source: Any, target: Any) -> Any:
    """Copy the two bytes at an address to another."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        half = builder.load(_pointer(builder, args[0], ir.IntType(16)), align=2)
        builder.store(half, _pointer(builder, args[1], ir.IntType(16)), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def ask_for(builder: ir.IRBuilder, address: ir.Value, size: int) -> None:
    """Emit requests for so many bytes from an address; nothing happens where there is no memory."""
    byte = ir.IntType(8).as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [byte, INT, INT, INT])
    function = builder.module.declare_intrinsic("llvm.prefetch", (byte,), signature)
    for line in range(0, size, _CACHE_LINE):
        at = builder.inttoptr(builder.add(address, ir.Constant(LONG, line)), byte)
        builder.call(function, [at, *(ir.Constant(INT, option) for option in (0, 3, 1))])  # read, keep, data


@instruction
def fetch(typing: Any, address: Any) -> Any:
    """Ask for the `LANES` float32 at an address ahead of their use; nothing where there is no memory."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        ask_for(builder, args[0], VECTOR_BYTES)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@instruction
def broadcast(typing: Any, address: Any) -> Any:
    """The float32 at an address, in every lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return spread(builder, builder.load(_pointer(builder, args[0], FLOAT), align=4))

    return lanes(types.int64), codegen


@instruction
def broadcast_halves(typing: Any, address: Any, apart: Any, twin: Any) -> Any:
    """The float32 at an address in the lower half of the lanes, and the one `apart` bytes after it in the upper half;
    where `twin` is None, the first one in all of them."""
    alone = isinstance(twin, types.NoneType)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address, apart, _ = args
        kind = VECTOR if alone else ir.VectorType(FLOAT, LANES // 2)
        places = [address] if alone else [address, builder.add(address, apart)]
        numbers = [builder.load(_pointer(builder, place, FLOAT), align=4) for place in places]
        halves = [spread(builder, number, kind) for number in numbers]
        return halves[0] if alone else builder.shuffle_vector(*halves, _indices(list(range(LANES))))

    return lanes(types.int64, types.int64, twin), codegen


@instruction
def splat(typing: Any, value: Any) -> Any:
    """A number, rounded to float32, in every lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return spread(builder, context.cast(builder, args[0], sig.args[0], types.float32))

    return lanes(value), codegen


@instruction
def get_float(typing: Any, address: Any) -> Any:
    """The float32 at an address."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], FLOAT), align=4)

    return types.float32(types.int64), codegen


@instruction
def put_float(typing: Any, address: Any, value: Any) -> Any:
    """Write a float32 to an address."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], FLOAT), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), codegen


@instruction
def get_int(typing: Any, address: Any) -> Any:
    """The int64 at an address."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], LONG), align=8)

    return types.int64(types.int64), codegen


@instruction
def where_less(typing: Any, a: Any, b: Any, then: Any, otherwise: Any) -> Any:
    """`then` in the lanes where `a < b`, `otherwise` in the others, NaN among them."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return lanes(lanes, lanes, lanes, lanes), codegen


@instruction
def fold(typing: Any, a: Any, b: Any) -> Any:
    """Half of each summand, twice as dense: `a`'s two halves added in the lower half, `b`'s in the upper."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        half = LANES // 2
        lower, upper = (
            [first + i for i in range(half)] + [LANES + first + i for i in range(half)] for first in (0, half)
        )
        parts = [builder.shuffle_vector(*args, _indices(lanes_taken)) for lanes_taken in (lower, upper)]
        return builder.fadd(*parts)

    return lanes(lanes, lanes), codegen


def _merge_pairs(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """Neighbouring lanes added: `a`'s sums, then `b`'s, those of the lower halves in the lower half."""
    half = LANES // 2
    firsts = [start + i for start in (0, LANES, half, LANES + half) for i in range(0, half, 2)]
    parts = [builder.shuffle_vector(a, b, _indices([lane + odd for lane in firsts])) for odd in (0, 1)]
    return builder.fadd(*parts)


@instruction
def sum_halves(typing: Any, address: Any, across: Any) -> Any:
    """Sums over the lanes of `LANES / 2` vectors, `across` bytes apart: lane i has that over the lower half of vector
    i, lane `LANES / 2 + i` that over its upper half."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first, across = args
        vectors = []
        for i in range(LANES // 2):
            at = builder.add(first, builder.mul(across, ir.Constant(LONG, i)))
            vectors.append(builder.load(_pointer(builder, at, VECTOR), align=4))
        while len(vectors) > 1:
            vectors = [_merge_pairs(builder, *pair) for pair in zip(vectors[::2], vectors[1::2], strict=True)]
        return vectors[0]

    return lanes(types.int64, types.int64), codegen


@instruction
def turn_block(typing: Any, source: Any, across: Any, target: Any, target_across: Any) -> Any:
    """A block of `SIDE` rows, `across` bytes apart, to its columns, `target_across` bytes apart.

    Source: J. O. Eklundh, "A fast computer method for matrix transposing", 1972: the blocks of half the side change
    places, then those of a quarter inside them, and so on.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def line(first: Any, apart: Any, number: int) -> Any:
            at = builder.add(first, builder.mul(apart, ir.Constant(LONG, number)))
            return builder.inttoptr(at, _LINE.as_pointer())

        def chosen(a: Any, b: Any, lanes: list[int]) -> Any:
            mask = ir.Constant(ir.VectorType(INT, SIDE), [ir.Constant(INT, lane) for lane in lanes])
            return builder.shuffle_vector(a, b, mask)

        source, across, target, target_across = args
        lines = [builder.load(line(source, across, i), align=4) for i in range(SIDE)]
        step = SIDE // 2
        while step:
            for i in range(SIDE):
                if not i & step:
                    a, b = lines[i], lines[i + step]
                    lines[i] = chosen(a, b, [k if not k & step else SIDE + k - step for k in range(SIDE)])
                    lines[i + step] = chosen(a, b, [k + step if not k & step else SIDE + k for k in range(SIDE)])
            step //= 2
        for i in range(SIDE):
            builder.store(lines[i], line(target, target_across, i), align=4)
        return context.get_dummy_value()

    return types.void(*(4 * (types.int64,))), codegen


@instruction
def sum_half(typing: Any, value: Any, upper: Any) -> Any:
    """The sum over the lower (0) or upper (1) half of the lanes, by halves, as float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        half = LANES // 2
        total = builder.select(
            builder.icmp_signed("==", args[1], ir.Constant(LONG, 0)),
            *(_take(builder, args[0], first, half) for first in (0, half)),
        )
        width = half
        while width > 1:
            width //= 2
            total = builder.fadd(_take(builder, total, 0, width), _take(builder, total, width, width))
        return builder.extract_element(total, ir.Constant(INT, 0))

    return types.float32(lanes, types.int64), codegen


def _avx512(builder: ir.IRBuilder, name: str, values: Sequence[ir.Value], options: Sequence[int] = ()) -> ir.Value:
    """An AVX-512 instruction for 16 lanes, unmasked and with the current rounding mode, on all lanes."""
    part, mask = ir.VectorType(FLOAT, 16), ir.IntType(16)
    parts = []
    for first in range(0, LANES, 16):
        operands = [_take(builder, value, first, 16) for value in values]
        operands += [ir.Constant(INT, option) for option in options]
        operands += [ir.Constant(part, ir.Undefined), ir.Constant(mask, -1), ir.Constant(INT, 4)]
        signature = ir.FunctionType(part, [operand.type for operand in operands])
        function = builder.module.declare_intrinsic(f"llvm.x86.avx512.mask.{name}.ps.512", (), signature)
        parts.append(builder.call(function, operands))
    return builder.shuffle_vector(*parts, _indices(list(range(LANES))))


@instruction
def nearest_integer(typing: Any, value: Any) -> Any:
    """The nearest integer in every lane; only where `HAS_SCALE`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _avx512(builder, "rndscale", args, [0])

    return lanes(lanes), codegen


@instruction
def minus_nearest_integer(typing: Any, value: Any) -> Any:
    """`value - nearest_integer(value)`, 0 for infinity; only where `HAS_SCALE`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _avx512(builder, "reduce", args, [0])

    return lanes(lanes), codegen


@instruction
def scale(typing: Any, value: Any, exponent: Any) -> Any:
    """`value * 2**exponent` for an integer exponent however large, rounded once; only where `HAS_SCALE`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _avx512(builder, "scalef", args)

    return lanes(lanes, lanes), codegen


@instruction
def power_of_two(typing: Any, shifted: Any) -> Any:
    """2**n, where `shifted` is n + 1.5 * 2**23: the low bits of that number are n, wanted in the exponent."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.shl(builder.bitcast(args[0], INTS), _every(23))
        return builder.bitcast(builder.add(bits, _every(127 << 23)), VECTOR)

    return lanes(lanes), codegen


@instruction
def put_int(typing: Any, address: Any, value: Any) -> Any:
    """Write an int64 to an address."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], LONG), align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def inline(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a helper that every kernel inlines."""
    compiled: Callable[..., Any] = njit(nogil=True, forceinline=True, error_model="numpy")(function)
    return compiled


def called(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a helper that kernels call: for what does much in a call, and would make them large."""
    compiled: Callable[..., Any] = njit(nogil=True, error_model="numpy")(function)
    return compiled


def in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    """A large part of one kernel, whose text is put in its place: it is compiled there alone, as `inline` is not."""
    placed: Callable[..., Any] = njit(inline="always", nogil=True, error_model="numpy")(function)
    return placed
