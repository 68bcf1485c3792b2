"""The branch on the spectrum against its equation, written out in complex numbers."""

import pytest
import torch
from support import relative_error

from wavemamba import ConfigError, DiMSUMBlock
from wavemamba.blocks import EinFFT, SingleBranchBlock


def written_out(branch, x):
    weights = [torch.complex(*w.unbind(0)) for w in (branch.weight1, branch.bias1, branch.weight2, branch.bias2)]
    z = torch.fft.fftn(x.flatten(1, 2).unflatten(-1, (branch.blocks, -1)), dim=(1, 2)) / x[0, ..., 0].numel() ** 0.5
    z = torch.einsum("blgd,gde->blge", z / branch.blocks**0.5, weights[0]) + weights[1]
    z = torch.einsum("blgd,gde->blge", torch.complex(z.real.relu(), z.imag.relu()), weights[2]) + weights[3]
    parts = [part.sign() * (part.abs() - branch.threshold).clamp(min=0) for part in (z.real, z.imag)]
    y = torch.fft.ifftn(torch.complex(*parts), dim=(1, 2)) * (x[0, ..., 0].numel() * branch.blocks) ** 0.5
    return y.real.flatten(2).unflatten(1, x.shape[1:3])


@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (4, 8)])
def test_it_is_its_equation(blocks, grid):
    torch.manual_seed(0)
    branch = EinFFT(8, blocks=blocks, threshold=0.1).double()
    for parameter in branch.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, *grid, 8, dtype=torch.float64)
    assert relative_error(branch(x), written_out(branch, x)) < 1e-12
    branch.residual = True
    assert relative_error(branch(x), x + written_out(branch, x)) < 1e-12


def test_gradients():
    branch = EinFFT(4, blocks=2, threshold=0.0).double()
    for parameter in branch.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    names, values = zip(*branch.named_parameters(), strict=True)

    def run(x, *parameters):
        return torch.func.functional_call(branch, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values))


def test_biases_do_not_decay():
    assert EinFFT(8).no_weight_decay() == {"bias1", "bias2"}


@pytest.mark.parametrize("options", [{"blocks": 3}, {"blocks": 0}, {"blocks": True}, {"threshold": -1}])
def test_bad_options_are_named(options):
    with pytest.raises(ConfigError, match=rf"{next(iter(options))}: expected"):
        EinFFT(8, **options)


def test_a_branch_of_another_width_or_condition_is_named():
    for message, make in (
        ("branch: expected width 8, got 4", lambda: SingleBranchBlock(8, branch=EinFFT(4))),
        ("branch: expected cond_dim = 3", lambda: SingleBranchBlock(8, 3, branch=EinFFT(8))),
        (r"branch: expected a module called as branch\(x, cond\)", lambda: SingleBranchBlock(8, branch=EinFFT)),
        ("frequency: expected width 4", lambda: DiMSUMBlock(8, frequency=EinFFT(8))),
        ('mlp: expected a module, None or "none"', lambda: DiMSUMBlock(8, mlp="gated")),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
