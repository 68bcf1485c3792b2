"""A tile of a matrix product, as one instruction of a numba kernel: its sums stay in registers from first to last."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from wavemamba.ops.cpu.simd import FLOAT, FUSED, INT, LONG, ask_for, instruction, spread

HEIGHT = 12
"""Rows of a tile: with two registers of AVX-512 a row 24 of its 32 registers, and what both rows share."""
_AHEAD = 24
"""Steps between asking for memory and reading it: down the columns of a large matrix no processor guesses the way."""


def _tile(width: int) -> Any:
    vector, integers, bits = (ir.VectorType(kind, width) for kind in (FLOAT, INT, ir.IntType(1)))
    pointer, line = vector.as_pointer(), ir.Constant(INT, 4)
    nothing = ir.Constant(vector, [ir.Constant(FLOAT, 0.0)] * width)

    @instruction
    def multiply(
        typing: Any,
        a: Any,
        a_row: Any,
        a_step: Any,
        b: Any,
        b_step: Any,
        steps: Any,
        c: Any,
        c_row: Any,
        bias: Any,
        columns: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            a, a_row, a_step, b, b_step, steps, c, c_row, bias, columns = args
            lanes = ir.Constant(integers, [ir.Constant(INT, lane) for lane in range(width)])
            mask = builder.icmp_signed("<", lanes, spread(builder, builder.trunc(columns, INT), integers))
            name = f"v{width}f32.p0"
            read = builder.module.declare_intrinsic(
                f"llvm.masked.load.{name}", (), ir.FunctionType(vector, [pointer, INT, bits, vector])
            )
            write = builder.module.declare_intrinsic(
                f"llvm.masked.store.{name}", (), ir.FunctionType(ir.VoidType(), [vector, pointer, INT, bits])
            )

            def row(first: Any, across: Any, number: int) -> Any:
                return builder.add(first, builder.mul(across, ir.Constant(LONG, number)))

            before = builder.block
            biased, loop, end = (builder.append_basic_block(part) for part in ("biased", "loop", "end"))
            builder.cbranch(builder.icmp_signed("!=", bias, ir.Constant(LONG, 0)), biased, loop)
            builder.position_at_end(biased)
            start = builder.call(read, [builder.inttoptr(bias, pointer), line, mask, nothing])
            builder.branch(loop)

            builder.position_at_end(loop)
            step, at, beside = (builder.phi(LONG) for _ in range(3))
            sums = [builder.phi(vector) for _ in range(HEIGHT)]
            others = builder.call(read, [builder.inttoptr(beside, pointer), line, mask, nothing])
            added = []
            for number, total in enumerate(sums):
                place = builder.inttoptr(row(at, a_row, number), FLOAT.as_pointer())
                factor = spread(builder, builder.load(place, align=4), vector)
                added.append(builder.fadd(total, builder.fmul(factor, others, flags=FUSED), flags=FUSED))
            for first, across, size in ((beside, b_step, 4 * width), (at, a_step, 1)):
                ask_for(builder, row(first, across, _AHEAD), size)
            next_step = builder.add(step, ir.Constant(LONG, 1))
            after = [next_step, builder.add(at, a_step), builder.add(beside, b_step), *added]
            for value, following in zip([step, at, beside, *sums], after, strict=True):
                value.add_incoming(following, loop)
            for block, initial in ((before, nothing), (biased, start)):
                first = [ir.Constant(LONG, 0), a, b, *[initial] * HEIGHT]
                for value, beginning in zip([step, at, beside, *sums], first, strict=True):
                    value.add_incoming(beginning, block)
            builder.cbranch(builder.icmp_signed("<", next_step, steps), loop, end)

            builder.position_at_end(end)
            for number, total in enumerate(added):
                builder.call(write, [total, builder.inttoptr(row(c, c_row, number), pointer), line, mask])
            return context.get_dummy_value()

        return types.void(*(10 * (types.int64,))), codegen

    return multiply


tile = _tile(32)
"""`(a, a_row, a_step, b, b_step, steps, c, c_row, bias, columns)`: `HEIGHT` rows of up to 32 `columns` of a product.

`c[i, j] = bias[j] + sum_k a[i, k] b[k, j]` over `steps` k, at least one. Addresses, and strides in bytes: `a` has any,
`b`, `c` and `bias` have neighbouring columns; `bias` 0: none. Sums run over k in order. Nothing is read or written
beyond the last column, in one instruction where the processor has masks.
"""
half_tile = _tile(16)
"""The same of up to 16 columns."""
