"""Parts are injected by name, checked when the block is built, and again by what they return."""

import functools

import pytest
import torch
from block_zoo import COND, DIM, condition
from support import relative_error
from torch import nn

from wavemamba import (
    ConfigError,
    DiMSUMBlock,
    MambaMixer,
    ShapeError,
    SharedAttention,
    SpatialFrequencyFusion,
    SpatialMambaBlock,
    WaveletMambaBlock,
    frequency_transform,
    scan_order,
)
from wavemamba.blocks import DiffuSSMBlock, ZigMaBlock
from wavemamba.layers import CrossAttention, S4DMixer

HALF = DIM // 2


class OwnMixer(nn.Module):
    """Adds the condition and the token visited before."""

    def __init__(self, dim, cond_dim=COND):
        super().__init__()
        self.linear, self.cond_linear = nn.Linear(dim, dim), nn.Linear(cond_dim, dim)

    def forward(self, tokens, cond=None, *, order=None):
        visited = tokens if order is None else tokens[:, order]
        mixed = self.linear(visited.roll(1, dims=1))
        if order is not None:
            mixed = mixed[:, order.argsort()]
        return mixed if cond is None else mixed + self.cond_linear(cond)[:, None]


class Loose(nn.Module):
    """Takes anything, and returns what it is told to."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, *args, **kwargs):
        return self.result(args[0])


class OwnBranch(nn.Module):
    def __init__(self, cond_dim=COND):
        super().__init__()
        self.linear = nn.Linear(cond_dim, HALF)

    def forward(self, x, cond=None):
        return x * self.linear(cond)[:, None, None]


class OwnFusion(nn.Module):
    def forward(self, spatial, frequency):
        return torch.cat([spatial + frequency, spatial - frequency], dim=-1)


def x(batch=2, width=DIM):
    return torch.randn(batch, 3, 4, width)


def zigma(**parts):
    return ZigMaBlock(DIM, COND, scan="snake", **parts)


def test_own_parts_run_and_learn():
    attention = nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh())
    blocks = {
        "mixer": SpatialMambaBlock(DIM, COND, scan="snake", mixer=OwnMixer(DIM)),
        "wavelet mixer": WaveletMambaBlock(DIM, COND, mixer=OwnMixer(DIM)),
        "branches": DiMSUMBlock(DIM, COND, spatial=OwnBranch(), frequency=OwnBranch(), fusion=OwnFusion()),
        "mlp": DiMSUMBlock(DIM, COND, mlp=nn.Linear(DIM, DIM), norm=nn.LayerNorm),
        "norm": DiMSUMBlock(DIM, COND, norm=functools.partial(nn.RMSNorm, eps=1e-3)),
        "attention": SharedAttention(DIM, COND, attention=attention, mlp=nn.Identity()),
        "mixers of both ways": DiffuSSMBlock(DIM, COND, mixer=MambaMixer(DIM), backward=S4DMixer(DIM)),
    }
    for name, block in blocks.items():
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.2)
        y = block(x(), condition(COND))
        (y[0] if isinstance(y, tuple) else y).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in block.parameters()), name


def test_an_own_norm_replaces_the_default_one():
    own = SpatialMambaBlock(DIM, norm=lambda dim: nn.LayerNorm(dim, elementwise_affine=False))
    default = SpatialMambaBlock(DIM)
    default.load_state_dict(own.state_dict(), strict=False)
    y, z = x(), x()
    assert relative_error(own(y + 1), own(y) + 1) < 1e-5  # a layer norm does not see a shift
    assert relative_error(default(z + 1), default(z) + 1) > 1e-2


def test_the_condition_reaches_the_mixer_that_takes_one_alone():
    seen = []

    class Watching(OwnMixer):
        def forward(self, tokens, cond=None, *, order=None):
            seen.append(cond)
            return super().forward(tokens, cond, order=order)

    cond, mixer = condition(COND), Watching(DIM)
    SpatialMambaBlock(DIM, COND, mixer=mixer)(x(), cond)
    assert seen.pop() is cond
    mixer.takes_condition = False
    SpatialMambaBlock(DIM, COND, mixer=mixer)(x(), cond)
    assert seen.pop() is None
    block = SpatialMambaBlock(DIM, COND, mixer=MambaMixer(DIM))
    block.step.mixer = Loose(block.step.mixer)  # a wrapper that loses attributes changes nothing
    block(x(), cond)


@pytest.mark.parametrize("dim", [2, 6, 8, 14, 34, 40, 64])
def test_default_heads_fit_any_width(dim):
    assert SharedAttention(dim, 3)(x(width=dim), torch.randn(2, 3)).shape == (2, 3, 4, dim)
    assert DiMSUMBlock(dim)(x(width=dim))[0].shape == (2, 3, 4, dim)
    assert SharedAttention(1024).attention.num_heads == 16
    assert SpatialFrequencyFusion(1024).num_heads == 8


def test_a_sequence_of_blocks_says_how_to_chain_them():
    with pytest.raises(ShapeError, match=r"x: expected a tensor, got tuple.*block\(x, cond, residual\)"):
        nn.Sequential(DiMSUMBlock(DIM), DiMSUMBlock(DIM))(x())
    nn.Sequential(SpatialMambaBlock(DIM), SharedAttention(DIM))(x())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: SpatialMambaBlock(DIM, mixer=nn.Identity()),
            r"mixer: .*mixer\(tokens, cond, order=order\), got Identity",
        ),
        (lambda: WaveletMambaBlock(DIM, mixer=MambaMixer), r"mixer: .*the class MambaMixer; build it"),
        (lambda: SpatialMambaBlock(DIM, mixer=lambda *a, **k: 0), "mixer: .*nn.Module"),
        (lambda: SpatialMambaBlock(DIM, mixer=MambaMixer(HALF)), "mixer: expected width 16, got 8"),
        (
            lambda: SpatialMambaBlock(DIM, mixer=MambaMixer(DIM, cond_dim=COND, conditioning="conv_state")),
            "mixer: .*cond_dim = None, got cond_dim = 6",
        ),
        (
            lambda: SpatialMambaBlock(DIM, COND, mixer=MambaMixer(DIM, cond_dim=9, conditioning="conv_state")),
            "cond_dim = 6, got cond_dim = 9",
        ),
        (lambda: SpatialMambaBlock(DIM, COND, norm="rms"), "norm: expected None with cond_dim"),
        (lambda: SpatialMambaBlock(DIM, norm=nn.LayerNorm(DIM)), "norm: .*function of the width"),
        (lambda: SpatialMambaBlock(DIM, norm=3), "norm: .*got int"),
        (lambda: SpatialMambaBlock(DIM, scan=3), "scan: expected a ScanOrder"),
        (lambda: WaveletMambaBlock(DIM, transform=3), "transform: expected a FrequencyTransform"),
        (lambda: DiMSUMBlock(DIM, spatial=nn.Identity()), r"spatial: .*spatial\(x, cond\)"),
        (lambda: DiMSUMBlock(DIM, frequency=WaveletMambaBlock(DIM)), "frequency: expected width 8, got 16"),
        (lambda: DiMSUMBlock(DIM, COND, spatial=SpatialMambaBlock(HALF)), "spatial: expected cond_dim = 6"),
        (
            lambda: DiMSUMBlock(DIM, spatial=SpatialMambaBlock(HALF, channels_first=True)),
            "spatial: expected channels_first=False",
        ),
        (lambda: DiMSUMBlock(DIM, fusion=SpatialFrequencyFusion(HALF)), "fusion: expected width 16, got 8"),
        (lambda: DiMSUMBlock(DIM, fusion=nn.Linear(DIM, DIM)), r"fusion\(spatial, frequency\), got Linear"),
        (lambda: DiMSUMBlock(DIM, mlp=nn.GELU), "mlp: .*the class GELU"),
        (lambda: DiMSUMBlock(DIM, norm=nn.LayerNorm(DIM)), "norm: "),
        (lambda: SharedAttention(DIM, attention=nn.Identity(), num_heads=4), "num_heads: expected None"),
        (lambda: SharedAttention(DIM, mlp=nn.Identity(), mlp_ratio=2.0), "mlp_ratio, gated_mlp: expected neither"),
        (lambda: SharedAttention(DIM, mlp=nn.Bilinear(DIM, DIM, DIM)), "mlp: "),
        (lambda: SpatialFrequencyFusion(DIM, 4, mode="linear"), "num_heads: expected None with mode='linear'"),
        (
            lambda: WaveletMambaBlock(DIM, transform=frequency_transform("haar", 1), levels=3),
            "levels: expected it in the transform",
        ),
        (lambda: SharedAttention("a"), "dim: expected an int >= 1, got 'a'"),
        (lambda: SharedAttention(DIM, 0), "cond_dim: expected an int >= 1, got 0"),
        (lambda: SharedAttention(DIM, num_heads=2.0), "num_heads: expected a divisor"),
        (lambda: MambaMixer(8, d_conv=1, conditioning="conv_state", cond_dim=4), "d_conv: expected at least 2"),
        (lambda: MambaMixer(8, cond_dim=4), "cond_dim: expected None with conditioning='none'"),
        (lambda: DiMSUMBlock(DIM, drop_path="a"), "drop_path"),
        (lambda: ZigMaBlock(DIM, COND, scan="snake", cross=nn.Identity()), r"cross: .*cross\(tokens, context\)"),
        (lambda: ZigMaBlock(DIM, COND, scan="snake", mixer=nn.Identity()), "mixer: expected"),
        (lambda: ZigMaBlock(DIM, None, scan="snake"), "cond_dim: expected an int"),
        (lambda: DiffuSSMBlock(DIM, mixer=nn.Identity()), "mixer: expected"),
        (lambda: DiffuSSMBlock(DIM, backward=nn.Identity()), "backward: expected"),
        (lambda: DiffuSSMBlock(DIM, shorten=3), "shorten: expected a divisor of 2 \\* dim = 32, got 3"),
        (lambda: DiffuSSMBlock(DIM, shorten=0), "shorten: expected an int >= 1"),
        (lambda: DiffuSSMBlock(DIM, scan="snail"), "scan"),
    ],
)
def test_a_part_that_does_not_fit_is_named_when_the_block_is_built(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SpatialMambaBlock(DIM, mixer=Loose(lambda t: t[:, :2]))(x()), "mixer's result: expected"),
        (lambda: SpatialMambaBlock(DIM, mixer=Loose(lambda t: (t, None)))(x()), "mixer: expected a result.*got tuple"),
        (lambda: DiMSUMBlock(DIM, spatial=Loose(lambda t: t[..., :1]))(x()), "spatial's result"),
        (lambda: DiMSUMBlock(DIM, frequency=Loose(lambda t: None))(x()), "frequency: .*NoneType"),
        (lambda: DiMSUMBlock(DIM, fusion=Loose(lambda t: t))(x()), "fusion's result"),
        (lambda: DiMSUMBlock(DIM, mlp=nn.Linear(DIM, 1))(x()), "mlp's result"),
        (lambda: SharedAttention(DIM, attention=nn.Linear(DIM, 1))(x()), "attention's result"),
        (lambda: SpatialFrequencyFusion(DIM)(x(), x()), r"spatial: .*C.*16\); pass the halves of a map"),
        (lambda: SpatialFrequencyFusion(DIM)(x(width=HALF), None), "frequency: expected a tensor"),
        (lambda: zigma()(x(), condition(COND), x(width=3)), "residual: expected"),
        (lambda: zigma()(x(), condition(COND), None, x()), "context: expected None"),
        (lambda: zigma(cross=CrossAttention(DIM, 2, 4))(x(), condition(COND)), "context: expected a tensor"),
        (lambda: zigma(cross=Loose(lambda t: t[:, :1]))(x(), condition(COND), None, x()), "cross's result"),
        (lambda: zigma(mixer=Loose(lambda t: t[:, :1]))(x(), condition(COND)), "mixer's result"),
        (lambda: DiffuSSMBlock(DIM, mixer=Loose(lambda t: t[:, :1]))(x()), "mixer's result"),
        (lambda: DiffuSSMBlock(DIM, backward=Loose(lambda t: t[:, :1]))(x()), "backward's result"),
        (lambda: SpatialMambaBlock(DIM)([1]), "x: expected a tensor, got list"),
        (lambda: SpatialMambaBlock(DIM, COND)(x(), [1.0]), "cond: expected a tensor"),
        (lambda: SpatialMambaBlock(DIM)(x(width=3)), "as wide as the block"),
        (lambda: SpatialMambaBlock(DIM, channels_first=True)(x()), "built with channels_first=True"),
        (lambda: MambaMixer(16)(torch.randn(2, 3, 16), torch.randn(2, 4)), "cond: expected None"),
        (lambda: MambaMixer(16)(torch.ones(2, 3, 16, dtype=torch.int64)), "x: .*floating"),
        (lambda: MambaMixer(16)(torch.randn(2, 4, 16), grid=(2, 2)), "grid: expected None without a ScanOrder"),
        (lambda: MambaMixer(16)(torch.randn(2, 4, 16), order=scan_order("snake"), grid=(2, 3)), "grid: expected .*= 4"),
        (lambda: MambaMixer(16)(torch.randn(2, 3, 16), order=[2, 0, 1]), "order: .*got list"),
    ],
)
def test_a_result_or_an_input_that_does_not_fit_is_named(call, message):
    with pytest.raises(ShapeError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "near"),
    [
        (lambda: MambaMixer(8, conditioning="conv_stat"), "conv_state"),
        (lambda: SpatialFrequencyFusion(DIM, mode="swapk"), "swap_k"),
        (lambda: WaveletMambaBlock(DIM, layout="mosiac"), "mosaic"),
        (lambda: WaveletMambaBlock(DIM, transform="harr"), "haar"),
        (lambda: SpatialMambaBlock(DIM, scan="hilbrt"), "hilbert"),
        (lambda: DiMSUMBlock(DIM, norm="rmss"), "rms"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(call, near):
    with pytest.raises(ConfigError, match=f"did you mean '{near}'"):
        call()
    WaveletMambaBlock(DIM, transform="Haar", layout="Mosaic", scan="Hilbert")


def test_print_says_how_everything_was_built():
    text = repr(DiMSUMBlock(DIM, COND, spatial=SpatialMambaBlock(HALF, COND, scan="snake"), drop_path=0.1))
    for part in (
        "16, cond_dim=6", "RMSNorm(16, eps=1e-05)", "rate=0.1", "8, cond_dim=6, scan='snake'", "d_state=16, d_conv=4",
        "dt_rank=1", "HaarPacket(levels=2), layout='mosaic'", "16, num_heads=8, mode='cross'", "steps=1",
    ):  # fmt: skip
        assert part in text, part
