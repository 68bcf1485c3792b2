import copy
import pickle

import pytest
import timm.optim
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from wavemamba import DiMSUMBlock, MambaMixer, WaveletMambaBlock
from wavemamba.layers import parameter_groups, undecayed_names


class Network(nn.Module):
    """A network of a user's own."""

    def __init__(self):
        super().__init__()
        self.inp, self.block = nn.Conv2d(3, 8, 1), DiMSUMBlock(8)

    def no_weight_decay(self):
        return undecayed_names(self)


def marked(module):
    return {name for name, p in module.named_parameters() if getattr(p, "_no_weight_decay", False)}


EXPECTED = {
    f"block.{branch}.step.mixer.directions.0.{name}" for branch in ("spatial", "frequency") for name in ("A_log", "D")
}


def rebuilt(network):
    with torch.device("meta"):
        again = Network()
    again = again.to_empty(device="cpu")
    again.load_state_dict(network.state_dict(), assign=True)
    return again


@pytest.mark.parametrize(
    "change",
    [
        lambda n: n,
        copy.deepcopy,
        lambda n: pickle.loads(pickle.dumps(n)),
        lambda n: n.double(),
        lambda n: n.to("meta"),
        rebuilt,
    ],
)
def test_marks_last(change):
    network = change(Network())
    assert marked(network) == undecayed_names(network) == EXPECTED


def decays(groups, network):
    names = {id(p): n for n, p in network.named_parameters()}
    return {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}


def test_groups_decay_matrices_alone():
    network = Network()
    network.inp.weight.requires_grad_(False)
    found = decays(parameter_groups(network, 0.05), network)
    for name, parameter in network.named_parameters():
        if name == "inp.weight":
            assert name not in found
        else:
            assert found[name] == (0.0 if name in EXPECTED or parameter.dim() < 2 else 0.05), name
    torch.optim.AdamW(parameter_groups(network, 0.05), lr=1e-3)


def test_a_networks_own_list_counts_too():
    class Named(Network):
        def no_weight_decay(self):
            return {"inp.weight"}

    network = Named()
    found = decays(parameter_groups(network, 0.05), network)
    assert {n for n, decay in found.items() if decay == 0 and network.get_parameter(n).dim() > 1} == {
        "inp.weight",
        *(n for n in EXPECTED if n.endswith("A_log")),
    }


def test_pruned_and_parametrised_parameters_are_known():
    mixer = MambaMixer(8)
    prune.identity(mixer.directions[0], "A_log")
    parametrize.register_parametrization(mixer.directions[0], "D", nn.Identity())
    assert undecayed_names(mixer) == {"directions.0.A_log_orig", "directions.0.parametrizations.D.original"}


def test_timm_does_not_decay_them():
    network = Network()
    for optimizer in (
        timm.optim.create_optimizer_v2(network, "adamw", lr=1e-3, weight_decay=0.05),
        timm.optim.create_optimizer_v2(network, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.9),
    ):
        found = decays(optimizer.param_groups, network)
        assert {found[n] for n in EXPECTED} == {0.0}
        assert found["block.fusion.proj.weight"] == 0.05
    assert WaveletMambaBlock(8).no_weight_decay() == {"step.mixer.directions.0.A_log", "step.mixer.directions.0.D"}
