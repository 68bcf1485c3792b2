"""Numbers that do not follow a global default, autocast, or a narrow dtype."""

import copy

import pytest
import torch
from block_zoo import BLOCKS, COND, DIM, build, condition, run
from support import relative_error

from wavemamba.layers import LabelEmbed, LayerNorm, MambaMixer, RMSNorm, TimeEmbed, attend
from wavemamba.layers.embeddings import PatchEmbed, resample_position, sincos_position
from wavemamba.layers.norm import plain_layer_norm


@pytest.fixture(params=["dtype float64", "dtype bfloat16", "device meta"])
def other_default(request):
    """A global default that nothing should follow; set by calling the fixture, undone after the test."""
    kind, name = request.param.split()
    before = torch.get_default_dtype()

    def enter():
        if kind == "dtype":
            torch.set_default_dtype(getattr(torch, name))
        else:
            torch.set_default_device(name)

    yield enter
    torch.set_default_dtype(before)
    torch.set_default_device(None)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_follow_their_inputs_and_no_global_default(name, other_default):
    block, x, cond = build(name, COND), torch.randn(2, 5, 6, DIM, requires_grad=True), condition(COND)
    weight = torch.randn(2, 5, 6, DIM)
    wanted = (x, *block.parameters())
    y = run(block, x, cond)
    gradients = torch.autograd.grad((y * weight).sum(), wanted)
    other_default()
    again = run(block, x, cond)
    assert torch.equal(again, y)
    for gradient, expected in zip(torch.autograd.grad((again * weight).sum(), wanted), gradients, strict=True):
        assert relative_error(gradient, expected) < 1e-6


def test_states_embeddings_and_label_dropout_follow_no_global_default(other_default):
    mixer, x = MambaMixer(8), torch.randn(2, 7, 8)
    lengths, position = torch.tensor([7, 3]), torch.randn(1, 3, 4, 8)
    time, label, t = TimeEmbed(8), LabelEmbed(5, 8, 0.5).train(), torch.rand(40)
    labels = torch.zeros(40, dtype=torch.int64)

    def everything():
        y, state = mixer(x, lengths=lengths, state=mixer.initial_state(2), return_state=True)
        torch.manual_seed(0)
        embedded = label(labels, t), label(None, t), time(t)
        return [y, *state, *embedded, resample_position(position, 5, 2), sincos_position(2, 3, 8)]

    expected = everything()
    other_default()
    for value, other in zip(everything(), expected, strict=True):
        assert torch.equal(value, other)


def test_initialisation_follows_no_global_default(other_default):
    modules = [MambaMixer(8), RMSNorm(8), LayerNorm(8), PatchEmbed(3, 8, 2), LabelEmbed(3, 8, 0.1), TimeEmbed(8)]
    again = copy.deepcopy(modules)

    def reset(module):
        torch.manual_seed(0)
        for part in module.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        return module.state_dict()

    expected = [reset(module) for module in modules]
    other_default()
    for module, values in zip(again, expected, strict=True):
        for name, value in reset(module).items():
            assert torch.equal(value, values[name]), name


def test_what_is_exact_stays_so_under_autocast():
    torch.manual_seed(0)
    x, position = 3 + torch.randn(2, 5, 64), torch.randn(1, 6, 6, 8)
    rms, layer, time = RMSNorm(64), LayerNorm(64), TimeEmbed(8)
    features = {}
    time.mlp.register_forward_hook(lambda _m, inputs, _y: features.update(inputs=inputs[0]))

    def everything():
        time(torch.rand(3, generator=torch.Generator().manual_seed(0)))
        return rms(x), layer(x), plain_layer_norm(x), resample_position(position, 12, 4), features["inputs"]

    expected = everything()
    with torch.autocast("cpu", torch.bfloat16):
        for value, other in zip(everything(), expected, strict=True):
            assert value.dtype == torch.float32
            assert relative_error(value, other) < 1e-6


def test_decay_and_step_sizes_are_float32_under_autocast():
    """Rounded to bfloat16 they would make a long memory forget: exp(-1e-3) and 1 are one number there."""
    torch.manual_seed(0)
    mixer = MambaMixer(16, d_state=2)
    mixer.directions[0].dt_bias.data.fill_(-7.0)
    x = torch.randn(1, 400, 16)
    expected = mixer(x, return_state=True)[1].ssm
    with torch.autocast("cpu", torch.bfloat16):
        state = mixer(x, return_state=True)[1].ssm
    assert state.dtype == torch.float32
    assert relative_error(state, expected) < 2e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_narrow_heads_in_16_bits_is_attention_in_float32(dtype):
    """PyTorch's own backward on the CPU takes several times as long for heads of width 8."""
    q, k, v = (torch.randn(2, 5, 16, dtype=dtype).requires_grad_() for _ in range(3))
    y = attend(q, k, v, 2)
    assert y.dtype == dtype
    wide = [t.detach().float().requires_grad_() for t in (q, k, v)]
    expected = attend(*wide, 2)
    assert torch.equal(y, expected.to(dtype))
    for got, other in zip(
        torch.autograd.grad(y.float().square().sum(), (q, k, v)),
        torch.autograd.grad(expected.to(dtype).float().square().sum(), wide),
        strict=True,
    ):
        assert torch.equal(got, other.to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(q, k, v, 2).dtype == dtype
