"""`channels_first=True`: the same block on (B, C, H, W)."""

import pytest
import torch
from block_zoo import COND, DIM, condition
from support import relative_error
from torch import nn

from wavemamba import DiMSUMBlock, SharedAttention, SpatialFrequencyFusion, SpatialMambaBlock, WaveletMambaBlock
from wavemamba.blocks import DiffuSSMBlock

BLOCKS = {
    "spatial": SpatialMambaBlock,
    "wavelet": WaveletMambaBlock,
    "attention": SharedAttention,
    "dimsum": DiMSUMBlock,
    "diffussm": DiffuSSMBlock,
    "fusion": lambda dim, cond_dim, **options: SpatialFrequencyFusion(dim, **options),
}


def last(x):
    return x.permute(0, 2, 3, 1)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_block_between_two_permutations(name, memory_format):
    torch.manual_seed(0)
    block = BLOCKS[name](DIM, COND, channels_first=True)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    plain = BLOCKS[name](DIM, COND)
    plain.load_state_dict(block.state_dict())
    x = torch.randn(2, DIM, 3, 6).to(memory_format=memory_format).requires_grad_()
    cond, residual = condition(COND), torch.randn(2, DIM, 3, 6)
    if name == "fusion":
        found, expected = [block(*x.chunk(2, 1))], [plain(*last(x).chunk(2, -1))]
    elif name == "dimsum":
        found, expected = block(x, cond, residual), plain(last(x), cond, last(residual))
    else:
        found, expected = [block(x, cond)], [plain(last(x), cond)]
    for y, z in zip(found, expected, strict=True):
        assert y.is_contiguous()
        assert relative_error(last(y), z) < 1e-6
    (gradient,), (other,) = (torch.autograd.grad(y[0].square().sum(), x) for y in (found, expected))
    assert relative_error(gradient, other) < 1e-5


class Between(nn.Module):
    """Two convolutions around the least block that there is."""

    def __init__(self, dim=4):
        super().__init__()
        self.inp, self.out = nn.Conv2d(3, dim, 1), nn.Conv2d(dim, 3, 1)
        self.block = SpatialFrequencyFusion(dim, mode="linear", channels_first=True)

    def forward(self, x):
        return self.out(self.block(*self.inp(x).chunk(2, dim=1)))


@pytest.mark.slow
def test_between_convolutions_it_compiles_for_any_image_size():
    """PyTorch's compiler fails there where channels-last maps are permuted between the convolutions without a copy."""
    model = Between()
    compiled = torch.compile(model, dynamic=True)
    for size in ((6, 9), (7, 10)):
        x = torch.randn(1, 3, *size)
        assert relative_error(compiled(x), model(x)) < 1e-5
