"""Weights are never read past the `forward` of the module that holds them: what wraps, hooks or derives them works."""

import copy
import warnings

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from block_zoo import BLOCKS, COND, DIM, build, condition, run
from support import relative_error
from torch import nn
from torch.nn.utils import parametrize, prune

from wavemamba.layers import LabelEmbed, PatchEmbed, TimeEmbed

FEW = ["spatial, conditioned mixer", "spatial, both ways", "wavelet mosaic", "attention", "dimsum"]


class Doubled(nn.Module):
    """Hides everything of a module but its call."""

    def __init__(self, module):
        super().__init__()
        self.wrapped = module

    def forward(self, x):
        return 2 * self.wrapped(x)


class Twice(nn.Module):
    def forward(self, parameter):
        return 2 * parameter


class LoRA(nn.Module):
    """A layer and a product of two small matrices beside it, as peft makes of a Linear."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(torch.randn(rank, layer.in_features))
        self.up = nn.Parameter(torch.randn(layer.out_features, rank))

    def forward(self, x):
        return self.layer(x) + x @ self.down.T @ self.up.T


def inputs(cond_dim=COND, dtype=torch.float64):
    return torch.randn(2, 2, 3, DIM, dtype=dtype), condition(cond_dim, dtype=dtype)


def layers_of(module, kind=nn.Linear):
    return [name for name, layer in module.named_modules() if isinstance(layer, kind)]


@pytest.mark.parametrize("name", BLOCKS)
def test_a_wrapper_and_a_hook_of_any_linear_layer_act_as_its_weights_would(name):
    block, (x, cond) = build(name, COND).double(), inputs()
    plain = run(block, x, cond)
    for layer in layers_of(block):
        doubled, wrapped = copy.deepcopy(block), copy.deepcopy(block)
        with torch.no_grad():
            for parameter in doubled.get_submodule(layer).parameters():
                parameter.mul_(2)
        wrapped.set_submodule(layer, Doubled(block.get_submodule(layer)))
        expected = run(doubled, x, cond)
        assert relative_error(expected, plain) > 1e-10, layer
        assert relative_error(run(wrapped, x, cond), expected) < 1e-12, layer
        hook = block.get_submodule(layer).register_forward_hook(lambda _layer, _inputs, y: 2 * y)
        assert relative_error(run(block, x, cond), expected) < 1e-12, layer
        hook.remove()


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("cond_dim", [None, COND])
def test_a_parametrisation_of_any_parameter_acts_as_its_value_would(name, cond_dim):
    block, (x, cond) = build(name, cond_dim).double(), inputs(cond_dim)
    for path, _ in list(block.named_parameters()):
        owner, _, parameter = path.rpartition(".")
        doubled, derived = copy.deepcopy(block), copy.deepcopy(block)
        with torch.no_grad():
            doubled.get_parameter(path).mul_(2)
        parametrize.register_parametrization(derived.get_submodule(owner), parameter, Twice())
        assert relative_error(run(derived, x, cond), run(doubled, x, cond)) < 1e-12, path


@pytest.mark.parametrize("name", FEW)
def test_pruning_acts_on_every_layer(name):
    block, (x, cond) = build(name, COND).double(), inputs()
    pruned = copy.deepcopy(block)
    for layer in layers_of(block):
        prune.l1_unstructured(pruned.get_submodule(layer), "weight", amount=0.5)
    zeroed = copy.deepcopy(block)
    zeroed.load_state_dict(
        {
            n: pruned.get_submodule(n.rpartition(".")[0]).weight
            if n.endswith(".weight") and n.rpartition(".")[0] in layers_of(block)
            else p
            for n, p in block.state_dict().items()
        }
    )
    assert relative_error(run(pruned, x, cond), run(zeroed, x, cond)) < 1e-12
    assert relative_error(run(pruned, x, cond), run(block, x, cond)) > 1e-3


@pytest.mark.parametrize("name", FEW)
def test_every_lora_layer_changes_the_result_and_learns(name):
    block, (x, cond) = build(name, COND).double().requires_grad_(False), inputs()
    for layer in layers_of(block):
        tuned = copy.deepcopy(block)
        tuned.set_submodule(layer, LoRA(block.get_submodule(layer)).double())
        y = run(tuned, x, cond)
        assert relative_error(y, run(block, x, cond)) > 1e-10, layer
        y.square().sum().backward()
        assert all(p.grad.any() for p in tuned.parameters() if p.requires_grad), layer


@pytest.mark.parametrize("name", FEW)
def test_dynamic_quantisation_replaces_every_layer(name):
    block, (x, cond) = build(name, COND).eval(), inputs(dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        quantised = torch.ao.quantization.quantize_dynamic(block, {nn.Linear}, dtype=torch.qint8)
    assert not layers_of(quantised)
    assert relative_error(run(quantised, x, cond), run(block, x, cond)) < 5e-2


@pytest.mark.parametrize("name", FEW)
def test_offloaded_weights_give_the_same_numbers(name, tmp_path):
    block, (x, cond) = build(name, COND).eval(), inputs(dtype=torch.float32)
    with torch.no_grad():
        expected = run(block, x, cond)
        away = cpu_offload(copy.deepcopy(block), execution_device=torch.device("cpu"))
        assert all(p.is_meta for p in away.parameters())
        assert torch.equal(run(away, x, cond), expected)
        away = disk_offload(copy.deepcopy(block), tmp_path, execution_device=torch.device("cpu"))
        assert torch.equal(run(away, x, cond), expected)


@pytest.mark.parametrize(
    ("module", "kind", "arguments"),
    [
        (TimeEmbed(8), nn.Linear, (torch.rand(3, dtype=torch.float64),)),
        (LabelEmbed(4, 8, 0.5), nn.Embedding, (None, torch.zeros(3))),
        (LabelEmbed(4, 8, 0.0), nn.Embedding, (torch.tensor([0, 3, 1]), torch.zeros(3))),
        (PatchEmbed(3, 8, 2), nn.Conv2d, (torch.randn(2, 3, 4, 6, dtype=torch.float64),)),
    ],
)
def test_embeddings_call_their_layers(module, kind, arguments):
    module = module.double()
    expected = module(*arguments)
    for layer in layers_of(module, kind):
        wrapped = copy.deepcopy(module)
        wrapped.set_submodule(layer, Doubled(module.get_submodule(layer)))
        assert relative_error(wrapped(*arguments), expected) > 1e-3, layer
    away = cpu_offload(copy.deepcopy(module), execution_device=torch.device("cpu"))
    assert torch.equal(away(*arguments), expected)
