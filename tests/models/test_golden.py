"""The released model's numbers: every activation, output and gradient."""

import pytest
import torch
from support import GOLDEN, golden_model, relative_error

from wavemamba import ops
from wavemamba.models.checkpoints import from_released

FORWARD, GRADIENT = 1e-5, 1e-4
VARIANTS = sorted(path.stem for path in (GOLDEN / "variants").glob("*.safetensors"))
# Released module -> ours, relative to a block.
PARTS = {
    "spatial_mamba.mixer": "spatial.step.mixer",
    "freq_mamba.mixer": "frequency.step.mixer",
    "proj": "fusion",
    "mlp": "mlp",
}


@pytest.fixture(scope="module")
def released():
    config, state, tensors = golden_model("dimsum")
    return from_released(state, config), state, tensors


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_output(released, backend):
    model, _, golden = released
    with ops.use_backend(backend), torch.no_grad():
        out = model(golden["in.x"], golden["in.t"], golden["in.y"])
    assert relative_error(out, golden["out"]) < FORWARD


def test_every_activation(released):
    model, _, golden = released
    modules = {
        "x_embedder": model.patch_embed,
        "t_embedder": model.time_embed,
        "y_embedder": model.label_embed,
        "final_layer": model.head,
    }
    for i, block in enumerate(model.blocks):
        modules[f"blocks.{i}"] = block
        modules[f"blocks.{i}.spatial_mamba"] = block.spatial
        modules[f"blocks.{i}.freq_mamba"] = block.frequency
        modules.update({f"blocks.{i}.{theirs}": block.get_submodule(ours) for theirs, ours in PARTS.items()})
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _m, inputs, output, name=name: seen.update({name: (inputs, output)}))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        model(golden["in.x"], golden["in.t"], golden["in.y"])
    for hook in hooks:
        hook.remove()

    compared = 0
    for key in (key for key in golden if key.startswith("act.")):
        name, _, slot = key.removeprefix("act.").rpartition(".")
        inputs, output = seen[name]
        if name.endswith(".mixer"):
            # Theirs sees the tokens in scan order, ours in rows with the order beside.
            block = model.blocks[int(name.split(".")[1])]
            part = block.spatial if "spatial" in name else block.frequency
            order = part.scan.permutation(8, 8)
            cond = seen[name.removesuffix(".mixer")][0][1]  # theirs gets the condition too, and drops it
            actual = {"in0": inputs[0][:, order], "in1": cond, "out0": output[:, order]}[slot]
        elif name.endswith(("spatial_mamba", "freq_mamba")):
            # Theirs also returns its input unchanged, and in2 is the condition.
            actual = {"in0": inputs[0], "in2": inputs[1], "out0": output, "out1": inputs[0]}[slot]
        elif name.count(".") == 1:
            residual = inputs[2] if len(inputs) > 2 else None
            actual = {"in0": inputs[0], "in1": residual, "in2": inputs[1], "out0": output[0], "out1": output[1]}[slot]
        else:
            outputs = output if isinstance(output, tuple) else (output,)
            actual = (inputs if slot.startswith("in") else outputs)[int(slot[-1])]
        assert relative_error(actual.reshape(golden[key].shape), golden[key]) < FORWARD, key
        compared += 1
    assert compared == sum(key.startswith("act.") for key in golden)


def test_every_gradient(released):
    model, state, golden = released
    model.zero_grad()
    x = golden["in.x"].clone().requires_grad_()
    (model(x, golden["in.t"], golden["in.y"]) * golden["grad.weight"]).sum().backward()
    assert relative_error(x.grad, golden["grad.in.x"]) < GRADIENT
    # Gradients travel through the same renaming as weights, by loading them as a model's weights.
    theirs = {name: golden.get(f"grad.param.{name}", torch.zeros_like(value)) for name, value in state.items()}
    expected = dict(from_released(theirs, golden_model("dimsum")[0]).named_parameters())
    for name, parameter in model.named_parameters():
        assert relative_error(parameter.grad, expected[name]) < GRADIENT, name


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name):
    config, state, golden = golden_model(f"variants/{name}")
    model = from_released(state, config)
    with torch.no_grad():
        out = model(golden["in.x"], golden["in.t"], golden["in.y"])
    assert relative_error(out, golden["out"]) < FORWARD
