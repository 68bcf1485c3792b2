"""What every mixer promises, beside what `test_states.py` has."""

import copy
import io

import pytest
import torch
from support import relative_error
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from wavemamba import ShapeError, SpatialMambaBlock, WaveletMambaBlock, scan_order
from wavemamba.blocks import ZigMaBlock
from wavemamba.layers import AttentionMixer, GLAMixer, Mamba2Mixer, MambaMixer, S4DMixer, SequenceMixer

C = 8
MIXERS = {
    "mamba1": lambda: MambaMixer(C, d_state=4),
    "mamba2": lambda: Mamba2Mixer(C, d_state=4, head_dim=4),
    "gla": lambda: GLAMixer(C, num_heads=2),
    "attention": lambda: AttentionMixer(C),
    "causal attention": lambda: AttentionMixer(C, causal=True),
    "s4d": lambda: S4DMixer(C),
    "mamba1 both ways": lambda: MambaMixer(C, d_state=4, bidirectional=True),
    "mamba2 both ways": lambda: Mamba2Mixer(C, d_state=4, head_dim=4, bidirectional=True),
    "gla both ways": lambda: GLAMixer(C, num_heads=2, bidirectional=True),
}
TWO_WAYS = [name for name in MIXERS if name.endswith("both ways")]


def build(name):
    torch.manual_seed(0)
    mixer = MIXERS[name]()
    for parameter in mixer.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return mixer


def tokens(length=12, batch=2, dtype=torch.float32):
    return torch.randn(batch, length, C, generator=torch.Generator().manual_seed(length)).to(dtype)


@pytest.mark.parametrize("name", MIXERS)
def test_order_is_gather_mix_scatter(name):
    mixer, x, order = build(name).double(), tokens(dtype=torch.float64), scan_order("hilbert")
    permutation = order.permutation(3, 4)
    expected = mixer(x[:, permutation])[:, order.inverse(3, 4)]
    assert relative_error(mixer(x, order=permutation), expected) < 1e-12
    assert relative_error(mixer(x, order=permutation.int()), expected) < 1e-12
    assert relative_error(mixer(x, order=order, grid=(3, 4)), expected) < 1e-12


@pytest.mark.parametrize("name", TWO_WAYS)
def test_second_direction_is_the_first_one_backwards(name):
    mixer, x = build(name).double(), tokens(dtype=torch.float64)
    mixer.directions[1].load_state_dict(mixer.directions[0].state_dict())
    assert relative_error(mixer(x.flip(1)).flip(1), mixer(x)) < 1e-12


@pytest.mark.parametrize("length", [1, 2, 65])
@pytest.mark.parametrize("name", MIXERS)
def test_every_parameter_has_a_gradient(name, length):
    """Also of a single token, where it is zero: distributed training waits for those that have none."""
    mixer, x = build(name), tokens(length).requires_grad_()
    y = mixer(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    missing = {key for key, parameter in mixer.named_parameters() if parameter.grad is None}
    assert not missing
    assert x.grad.any()
    if length > 2:
        assert all(parameter.grad.any() for parameter in mixer.parameters())


@pytest.mark.parametrize("name", MIXERS)
def test_an_empty_batch_gives_an_empty_result(name):
    mixer, x = build(name), tokens(batch=0).requires_grad_()
    y = mixer(x)
    assert y.shape == (0, 12, C)
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("name", MIXERS)
def test_narrow_dtypes_and_autocast(name):
    mixer, x = build(name), tokens(70)
    expected = mixer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(mixer(x), expected) < 3e-2
    if name == "s4d":  # whose frequencies must stay float32
        return
    y = copy.deepcopy(mixer).bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert relative_error(y, expected) < 4e-2


@pytest.mark.parametrize("name", MIXERS)
def test_defaults_of_pytorch_change_nothing(name):
    mixer, x = build(name), tokens(70)
    expected = mixer(x)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        y = mixer(x)
    finally:
        torch.set_default_dtype(before)
        torch.set_default_device(None)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("name", MIXERS)
def test_one_graph(name):
    mixer, x, order = build(name), tokens(20), torch.randperm(20)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x, order=order), mixer(x, order=order)
    assert relative_error(y, expected) < 1e-6
    gradients = [torch.autograd.grad(t.square().sum(), list(mixer.parameters())) for t in (y, expected)]
    for found, truth in zip(*gradients, strict=True):
        assert relative_error(found, truth) < 1e-5


@pytest.mark.parametrize("name", MIXERS)
def test_an_exported_mixer_is_the_mixer(name):
    mixer, x = build(name), tokens(20)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(mixer, (x,), dynamic_shapes={"x": {0: batch}})
    more = tokens(20, batch=5)
    assert relative_error(program.module()(more), mixer(more)) < 1e-6


@pytest.mark.parametrize("name", [name for name in MIXERS if not name.startswith("mamba1")])
def test_many_mixers_at_once(name):
    """`vmap` over the parameters; the kernels of Mamba-1 have tests of their own."""
    mixers = [build(name), build(name)]
    nn.init.normal_(mixers[1].out_proj.weight if hasattr(mixers[1], "out_proj") else mixers[1].D)
    parameters, buffers = torch.func.stack_module_state(mixers)
    x = tokens(20)

    def loss(parameters, buffers):
        return torch.func.functional_call(mixers[0], (parameters, buffers), (x,)).square().sum()

    gradients = torch.vmap(torch.func.grad(loss))(parameters, buffers)
    for i, mixer in enumerate(mixers):
        mixer(x).square().sum().backward()
        for key, parameter in mixer.named_parameters():
            assert relative_error(gradients[key][i], parameter.grad) < 1e-4, key


@pytest.mark.parametrize("name", MIXERS)
def test_copies_and_saved_weights(name):
    mixer, x = build(name), tokens()
    file = io.BytesIO()
    torch.save(mixer.state_dict(), file)
    file.seek(0)
    with torch.device("meta"):
        fresh = MIXERS[name]()
    fresh.load_state_dict(torch.load(file), assign=True)
    for other in (copy.deepcopy(mixer), fresh):
        assert torch.equal(other(x), mixer(x))


@pytest.mark.parametrize("name", [name for name in MIXERS if "attention" not in name and name != "s4d"])
def test_cost_is_linear_in_the_tokens(name):
    """Matrix products a token, in inference and training; `S4DMixer` takes Fourier transforms."""
    counts = []
    for length in (1024, 4096):
        mixer, x = build(name), tokens(length, batch=1)
        with FlopCounterMode(display=False) as flops:
            mixer(x).sum().backward()
        counts.append(flops.get_total_flops() / length)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("name", MIXERS)
def test_every_block_takes_every_mixer(name):
    image, cond = torch.randn(2, 5, 6, C), torch.randn(2, 3)
    for block in (
        SpatialMambaBlock(C, scan="hilbert", mixer=build(name)),
        WaveletMambaBlock(C, 3, mixer=build(name)),
        ZigMaBlock(C, 3, scan="snake", mixer=build(name)),
    ):
        for parameter in block.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.2)
        y = block(image, *(() if block.cond_dim is None else (cond,)))
        (y[0] if isinstance(y, tuple) else y).square().sum().backward()
        assert all(p.grad.any() for p in block.parameters())


@pytest.mark.parametrize("name", MIXERS)
def test_bad_input_is_named(name):
    mixer = build(name)
    for call, message in (
        (lambda: mixer(torch.randn(2, 5, 7)), r"x: expected \(B, L, C\)"),
        (lambda: mixer(torch.ones(2, 5, C, dtype=torch.int64)), "x: .*floating"),
        (lambda: mixer(tokens(6), order=scan_order("snake")), "grid"),
        (lambda: mixer(tokens(6), order=scan_order("snake"), grid=(2, 2)), "grid"),
        (lambda: mixer(tokens(6), order=torch.arange(5)), "order"),
        (lambda: mixer(tokens(6), order=torch.tensor([0, 0, 1, 2, 3, 4])), "order: expected every token"),
        (lambda: mixer(tokens(6), torch.randn(2, 3)), "cond: expected None"),
    ):
        with pytest.raises(ShapeError, match=message):
            call()


def test_every_mixer_of_the_library_is_here():
    from wavemamba.layers import mixers

    bases = {SequenceMixer, mixers.Mixer}
    classes = {getattr(mixers, name) for name in mixers.__all__ if name.endswith("Mixer")} - bases
    assert {type(make()) for make in MIXERS.values()} == classes
