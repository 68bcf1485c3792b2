"""What every public block promises, on every kind of grid."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from block_zoo import BLOCKS, CASES, COND, DIM, build, condition, run
from support import relative_error
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from wavemamba import (
    ConfigError,
    DiMSUMBlock,
    ShapeError,
    SharedAttention,
    SpatialFrequencyFusion,
    SpatialMambaBlock,
    WaveletMambaBlock,
    ops,
)
from wavemamba.ops.haar import LAYOUTS

GRIDS = [(1, 1), (1, 5), (3, 7), (4, 4), (6, 10), (8, 8)]


@pytest.mark.parametrize(("name", "cond_dim"), CASES)
def test_any_grid_forward_and_backward(name, cond_dim):
    block = build(name, cond_dim)
    for grid in GRIDS:
        block.zero_grad()
        x = torch.randn(2, *grid, DIM, requires_grad=True)
        y = run(block, x, condition(cond_dim))
        assert y.shape == x.shape
        (y * torch.randn_like(y)).sum().backward()
        assert torch.isfinite(x.grad).all()
        assert x.grad.abs().sum() > 0
        if grid == (6, 10):
            missing = [n for n, p in block.named_parameters() if p.grad is None or not p.grad.any()]
            assert not missing


@pytest.mark.parametrize("name", BLOCKS)
def test_samples_of_a_batch_do_not_meet_and_strides_do_not_matter(name):
    block, cond = build(name, COND).double(), condition(COND, 3, dtype=torch.float64)
    x = torch.randn(3, 5, 6, 2 * DIM, dtype=torch.float64)[..., ::2]
    y = run(block, x, cond)
    for i in range(3):
        alone = run(block, x[i : i + 1].contiguous(), cond[i : i + 1])
        assert relative_error(y[i : i + 1], alone) < 1e-12


@pytest.mark.parametrize("name", BLOCKS)
def test_backends_agree(name):
    block, x, cond = build(name, COND), torch.randn(2, 5, 6, DIM), condition(COND)
    with ops.use_backend("reference"):
        expected = run(block.double(), x.double(), cond.double())
    block.float()
    assert relative_error(run(block, x, cond), expected) < 2e-6
    with ops.use_backend("torch"):
        assert relative_error(run(block, x, cond), expected) < 2e-6


@pytest.mark.parametrize("name", BLOCKS)
def test_dtypes_and_autocast(name):
    block, x, cond = build(name, COND), torch.randn(2, 4, 6, DIM), condition(COND)
    expected = run(block, x, cond)
    with torch.autocast("cpu", torch.bfloat16):
        y = run(block, x, cond)
        y.float().sum().backward()
    assert relative_error(y, expected) < 3e-2
    for dtype, bound in ((torch.float16, 5e-3), (torch.bfloat16, 4e-2)):
        y = run(copy.deepcopy(block).to(dtype), x.to(dtype), cond.to(dtype))
        assert y.dtype == dtype
        assert relative_error(y, expected) < bound


@pytest.mark.parametrize("name", BLOCKS)
def test_copies_and_saved_states_are_the_same_block(name):
    block, x, cond = build(name, COND), torch.randn(1, 3, 5, DIM), condition(COND, 1)
    again = BLOCKS[name](COND)
    again.load_state_dict(block.state_dict())
    expected = run(block, x, cond)
    for other in (again, copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(run(other, x, cond), expected)
    with torch.no_grad():
        assert torch.equal(torch.func.functional_call(block, block.state_dict(), (x, cond))[0], block(x, cond)[0])


def test_a_pickled_block_runs_in_another_process(tmp_path):
    """As after a spawn: there no scan order has been made yet."""
    torch.save((build("wavelet, 3 levels", None), torch.randn(1, 3, 5, DIM)), tmp_path / "block.pt")
    code = "import sys, torch; block, x = torch.load(sys.argv[1], weights_only=False); print(tuple(block(x).shape))"
    command = [sys.executable, "-c", code, str(tmp_path / "block.pt")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == f"(1, 3, 5, {DIM})", result.stderr


def test_export_as_the_first_thing_that_a_process_does():
    """While it traces, PyTorch has its own `max` in place of Python's, with which numba cannot be imported."""
    code = (
        f"import torch, wavemamba; block, x = wavemamba.DiMSUMBlock({DIM}), torch.randn(2, 6, 5, {DIM});"
        "program = torch.export.export(block, (x,)).module();"
        "print(torch.allclose(program(x)[0], block(x)[0], rtol=1e-5, atol=1e-5))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "True", result.stderr


@pytest.mark.parametrize("name", BLOCKS)
def test_one_graph_for_any_grid(name):
    """As many graphs as there are ways to pad, or lengths of a recurrence, would be refused after a few sizes."""
    torch._dynamo.reset()  # blocks of one class share their number of graphs
    block, counter = build(name, COND), CompileCounter()
    compiled = torch.compile(block, fullgraph=True, backend=counter, dynamic=True)
    for grid in ((9, 14), (6, 5), (7, 7), (20, 3), (2, 2), (13, 21), (DIM, 6)):  # cells and chunks, one and several
        x, cond = torch.randn(3, *grid, DIM), condition(COND, 3)
        assert relative_error(run(compiled, x, cond), run(block, x, cond)) < 1e-6
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["spatial, Mamba-2", "dimsum"])
def test_the_second_grid_makes_the_graph_that_serves_all_others(name):
    """As PyTorch does it unasked, with gradients: the first graph is for one grid."""
    torch._dynamo.reset()
    block, counter = build(name, COND), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, fullgraph=True, backend=counter)
    graphs = []
    for grid in ((9, 14), (6, 5), (20, 3), (2, 2)):
        x, cond = torch.randn(3, *grid, DIM, requires_grad=True), condition(COND, 3)
        gradients = [torch.autograd.grad(run(call, x, cond).square().sum(), x)[0] for call in (compiled, block)]
        assert relative_error(*gradients) < 1e-5
        graphs.append(counter.frame_count)
    assert len(set(graphs)) <= 2  # none after the second grid's


@pytest.mark.parametrize(
    "name",
    [
        "spatial",
        "wavelet mosaic",
        "attention",
        "attention in windows",
        "linear attention",
        "dimsum",
        "dimsum, in windows",
        "dimsum, linear attention",
        "spatial, both ways",
    ],
)
def test_one_graph_export_and_checkpointing(name):
    block, x, cond = build(name, COND), torch.randn(2, 6, 5, DIM), condition(COND)
    expected = run(block, x, cond)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert relative_error(run(compiled, x, cond), expected) < 1e-6
    exported = torch.export.export(block, (x, cond)).module()
    assert relative_error(run(exported, x, cond), expected) < 1e-6
    x.requires_grad_()
    gradients = []
    for call in (block, lambda *a: checkpoint(block, *a, use_reentrant=False), compiled):
        (gradient,) = torch.autograd.grad(run(call, x, cond).square().sum(), x)
        gradients.append(gradient)
    assert relative_error(gradients[1], gradients[0]) < 1e-6
    assert relative_error(gradients[2], gradients[0]) < 1e-5


def test_wavelet_step_alone_is_exactly_undone():
    """With the gate closed only the transform and its inverse are left, padding and cropping included."""
    for layout in LAYOUTS:
        block = WaveletMambaBlock(DIM, COND, layout=layout).double()
        block.step.modulation.zero_()
        for grid in GRIDS:
            x = torch.randn(1, *grid, DIM, dtype=torch.float64)
            assert relative_error(block(x, condition(COND, 1, dtype=torch.float64)), x) < 1e-12


def test_training_after_inference_mode_on_a_new_grid():
    block = build("dimsum", None)
    x = torch.randn(1, 17, 19, DIM)
    with torch.inference_mode():
        block(x)
    block(x)[0].sum().backward()
    assert block.norm.weight.grad is not None


def test_residual_is_carried_in_float32():
    block = build("dimsum", None).bfloat16()
    x, residual = block(torch.randn(1, 4, 4, DIM).bfloat16())
    assert (x.dtype, residual.dtype) == (torch.bfloat16, torch.float32)
    x, again = block(x, residual=residual)
    assert again.dtype == torch.float32


def test_drop_path_drops_what_is_added_to_the_residual():
    torch.manual_seed(0)
    block = DiMSUMBlock(DIM, drop_path=0.5).train()
    x, residual = torch.randn(64, 2, 2, DIM), torch.randn(64, 2, 2, DIM)
    _, total = block(x, residual=residual)
    dropped = [torch.equal(total[i], residual[i]) for i in range(64)]
    assert 16 < sum(dropped) < 48
    assert all(d or torch.allclose(total[i], residual[i] + 2 * x[i]) for i, d in enumerate(dropped))
    assert torch.allclose(block.eval()(x, residual=residual)[1], x + residual)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("spatial", COND)(torch.randn(2, DIM, 4, 4), condition(COND)), "permute"),
        (lambda: build("wavelet mosaic", COND)(torch.randn(2, 16, DIM), condition(COND)), r"\(B, H, W, C\)"),
        (lambda: build("dimsum", COND)(torch.randn(2, 4, 4, DIM)), "cond: expected"),
        (lambda: build("dimsum", None)(torch.randn(2, 4, 4, DIM), condition(COND)), "cond: expected None"),
        (lambda: build("attention", COND)(torch.randn(2, 4, 4, DIM), condition(COND, 3)), "cond"),
        (lambda: build("spatial", None)(torch.randn(2, 0, 4, DIM)), "H, W >= 1"),
        (lambda: build("spatial", COND)(torch.randn(2, 4, 4, DIM), condition(COND + 1)), "cond: expected"),
        (lambda: build("spatial", COND)(torch.randn(2, 4, 4, DIM), condition(COND).long()), "cond: .*floating"),
        (lambda: build("dimsum", None)(*2 * (torch.randn(2, 4, 4, DIM),)), "cond: expected None"),
        (
            lambda: build("dimsum", None)(torch.randn(2, 4, 4, DIM), None, torch.randn(1, 4, 4, DIM)),
            "residual: expected the shape of x",
        ),
        (lambda: build("spatial", None)(torch.ones(2, 4, 4, DIM, dtype=torch.int64)), "floating"),
        (lambda: SpatialFrequencyFusion(DIM)(torch.randn(1, 4, 4, 8), torch.randn(1, 4, 5, 8)), "frequency"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ShapeError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: WaveletMambaBlock(DIM, layout="tiles"), "mosaic"),
        (lambda: WaveletMambaBlock(DIM, transform="harr"), "transform"),
        (lambda: SpatialMambaBlock(DIM, scan="rastr"), "raster"),
        (lambda: SpatialFrequencyFusion(DIM, 3), "num_heads"),
        (lambda: SpatialFrequencyFusion(DIM, mode="add"), "mode"),
        (lambda: SharedAttention(DIM, num_heads=5), "num_heads"),
        (lambda: DiMSUMBlock(15), "even"),
        (lambda: DiMSUMBlock(DIM, norm="batch"), "norm"),
        (lambda: DiMSUMBlock(DIM, drop_path=1.5), "drop_path"),
        (lambda: SharedAttention(DIM, num_heads=4, mlp_ratio=0), "hidden width"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize("name", BLOCKS)
def test_an_empty_batch_gives_an_empty_result_and_no_gradient(name):
    block, x, cond = build(name, COND), torch.randn(0, 5, 6, DIM, requires_grad=True), condition(COND, 0)
    y = run(block, x, cond)
    assert y.shape == (0, 5, 6, DIM)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert all(p.grad is not None and not p.grad.any() for p in block.parameters())
