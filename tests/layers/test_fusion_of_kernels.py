"""What the compiler makes of the layers between the large products."""

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from wavemamba.layers import add_norm, gated_residual, make_norm, modulate


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_residual_norm_and_modulation_are_one_kernel(norm):
    layer = make_norm(norm, 32)

    def step(x, residual, gate, shift, scale):
        normed, residual = add_norm(gated_residual(x, x.sin(), gate), residual, layer)
        return modulate(normed, shift, scale), residual

    inputs = [torch.randn(2, 6, 32), torch.randn(2, 6, 32), *(torch.randn(2, 32) for _ in range(3))]
    with torch.no_grad():
        torch.compiler.reset()
        results, programs = run_and_get_code(torch.compile(step, fullgraph=True), *inputs)
        assert sum(program.count("async_compile.cpp_pybinding(") for program in programs) == 1
        assert not any("extern_kernels." in program.split("def call(")[-1] for program in programs)
        for result, expected in zip(results, step(*inputs), strict=True):
            torch.testing.assert_close(result, expected)
