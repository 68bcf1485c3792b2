"""The packages' functions agree with the packages' own references, and with plain loops written here."""

import inspect
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from support import GOLDEN, relative_error

from wavemamba.compat import causal_conv1d as conv_package
from wavemamba.compat import mamba_ssm as scan_package
from wavemamba.compat import raw, selective_scan_cuda, selective_scan_cuda_core, selective_scan_cuda_oflex
from wavemamba.compat.mamba_ssm.modules.ssd_minimal import segsum, segsum_unstable, ssd_minimal_discrete
from wavemamba.compat.mamba_ssm.ops import selective_scan_interface as interface
from wavemamba.compat.mamba_ssm.ops.triton import layer_norm, layernorm, layernorm_gated, ssd_combined
from wavemamba.compat.mamba_ssm.ops.triton.selective_state_update import (
    selective_state_update,
    selective_state_update_ref,
)
from wavemamba.errors import ConfigError, ShapeError

with safe_open(GOLDEN / "cuda_packages.safetensors", "pt") as file:
    CASES = json.loads(file.metadata()["cases"])
    GIVEN = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
SCANS = [case for case in CASES if "case" in case]
CONVS = [case for case in CASES if "conv" in case]
TENSORS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def scan_arguments(case):
    found = {name: GIVEN.get(f"scan{case['case']}.in.{name}") for name in TENSORS}
    variable = {"A": False, "B": case["variable_B"], "C": case["variable_C"]}
    for name, along in variable.items():
        if case["complex"] and not along:
            found[name] = torch.view_as_complex(found[name])
    return {name: None if t is None else t.clone().requires_grad_() for name, t in found.items()}


def as_pairs(tensor):
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


@pytest.mark.parametrize("function", [interface.selective_scan_fn, interface.selective_scan_ref])
@pytest.mark.parametrize("case", SCANS, ids=lambda case: f"scan{case['case']}")
def test_scan_agrees_with_mamba_ssm(case, function):
    name, arguments = f"scan{case['case']}", scan_arguments(case)
    y, state = function(**arguments, delta_softplus=case["delta_softplus"], return_last_state=True)
    assert relative_error(y, GIVEN[f"{name}.out"]) < 1e-5
    assert relative_error(as_pairs(state), GIVEN[f"{name}.last_state"]) < 1e-5
    there = {key: t for key, t in arguments.items() if t is not None}
    gradients = torch.autograd.grad((y * GIVEN[f"{name}.weight"]).sum(), list(there.values()))
    for key, gradient in zip(there, gradients, strict=True):
        assert relative_error(as_pairs(gradient), GIVEN[f"{name}.grad.{key}"]) < 1e-4, key


@pytest.mark.parametrize("function", [conv_package.causal_conv1d_fn, conv_package.causal_conv1d_ref])
@pytest.mark.parametrize("case", CONVS, ids=lambda case: f"conv{case['conv']}")
def test_convolution_agrees_with_causal_conv1d(case, function):
    name = f"conv{case['conv']}"
    x, weight = GIVEN[f"{name}.x"], GIVEN[f"{name}.weight"]
    options = {"initial_states": GIVEN.get(f"{name}.initial_states"), "activation": case["activation"]}
    y, final = function(x, weight, GIVEN.get(f"{name}.bias"), return_final_states=True, **options)
    assert relative_error(y, GIVEN[f"{name}.out"]) < 1e-5
    assert torch.equal(final, GIVEN[f"{name}.final_states"])
    kept = torch.full_like(final, torch.nan)
    function(x, weight, return_final_states=True, final_states_out=kept, **options)
    assert torch.equal(kept, final)


def inner_arguments(paired=False, computed=True):
    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    generator = torch.Generator().manual_seed(0)
    D, L, N, R, C = 6, 9, 3, 2, 5
    numbers = 2 * N if paired else N
    A = -normal(D, N).exp()
    found = {
        "xz": normal(2, 2 * D, L),
        "conv1d_weight": normal(D, 1, 4),
        "conv1d_bias": normal(D),
        "x_proj_weight": normal(R + 2 * numbers, D),
        "delta_proj_weight": normal(D, R),
        "out_proj_weight": normal(C, D),
        "out_proj_bias": normal(C),
        "A": torch.complex(A, normal(D, N)) if paired else A,
        "D": normal(D),
        "delta_bias": normal(D),
    }
    if computed:
        return {**found, "B_proj_bias": normal(numbers), "C_proj_bias": normal(numbers)}
    given = torch.complex(normal(D, N), normal(D, N)) if paired else normal(D, N)
    return {**found, "B": given, "C": given.flip(0)}


@pytest.mark.parametrize("computed", [True, False])
@pytest.mark.parametrize("paired", [False, True])
def test_inner_function_is_its_parts(paired, computed):
    arguments = inner_arguments(paired, computed)
    y = interface.mamba_inner_fn(**arguments)
    assert relative_error(y, interface.mamba_inner_ref(**arguments)) < 1e-12
    x, z = arguments["xz"].chunk(2, dim=1)
    x = F.silu(F.conv1d(F.pad(x, (3, 0)), arguments["conv1d_weight"], arguments["conv1d_bias"], groups=6))
    numbers = 6 if paired else 3
    dt, B, C = F.linear(x.mT, arguments["x_proj_weight"]).split([2, numbers, numbers], dim=-1)
    if computed:
        B, C = ((t + bias).mT for t, bias in ((B, arguments["B_proj_bias"]), (C, arguments["C_proj_bias"])))
        if paired:
            B, C = (t.unflatten(1, (3, 2)).transpose(2, 3).flatten(2) for t in (B, C))
    else:
        B, C = arguments["B"], arguments["C"]
    delta = (dt @ arguments["delta_proj_weight"].mT).mT
    y_plain = interface.selective_scan_ref(
        x, delta, arguments["A"], B, C, arguments["D"], z, arguments["delta_bias"], delta_softplus=True
    )
    plain = F.linear(y_plain.mT, arguments["out_proj_weight"], arguments["out_proj_bias"])
    assert relative_error(y, plain) < 1e-12


def test_norms_of_the_projections():
    arguments = {**inner_arguments(), "B_proj_bias": None, "C_proj_bias": None}
    weights = {f"{name}_rms_weight": torch.rand(n).double() for name, n in (("b", 3), ("c", 3), ("dt", 6))}
    y = interface.mamba_inner_fn(**arguments, **weights, b_c_dt_rms_eps=1e-14)
    assert relative_error(y, interface.mamba_inner_fn(**arguments)) > 0.01
    scaled = {**arguments, "x_proj_weight": 5 * arguments["x_proj_weight"]}  # an RMS norm does not see a factor
    assert relative_error(interface.mamba_inner_fn(**scaled, **weights, b_c_dt_rms_eps=1e-14), y) < 1e-8


def test_two_directions_share_all_but_their_rates():
    arguments = inner_arguments()
    A_b = arguments["A"] / 2
    both = interface.bimamba_inner_fn(**arguments, A_b=A_b)
    assert relative_error(both, interface.bimamba_inner_ref(**arguments, A_b=A_b)) < 1e-12
    one = interface.mamba_inner_fn(**arguments)
    assert relative_error(both, one) > 0.01
    bare = {k: v for k, v in arguments.items() if not k.startswith("out_proj")}
    scanned = interface.mamba_inner_fn_no_out_proj(**bare)
    assert relative_error(F.linear(scanned.mT, arguments["out_proj_weight"], arguments["out_proj_bias"]), one) < 1e-12


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("room", [3, 5])
def test_an_updated_convolution_is_the_whole_one(room, ring):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 6, 11), torch.randn(6, 4), torch.randn(6)
    whole = conv_package.causal_conv1d_fn(x, weight, bias, activation="silu")
    state = torch.zeros(2, 6, room)
    seen = torch.zeros(2, dtype=torch.int32) if ring else None
    steps = []
    for start, count in ((0, 1), (1, 2), (3, 1), (4, 3), (7, 4)):
        if ring and count > room:
            continue
        part = x[..., start] if count == 1 else x[..., start : start + count]
        y = conv_package.causal_conv1d_update(part, state, weight, bias, "silu", cache_seqlens=seen)
        steps.append(y.unsqueeze(-1) if count == 1 else y)
        if ring:
            seen = seen + count
    found = torch.cat(steps, dim=-1)
    assert relative_error(found, whole[..., : found.shape[-1]]) < 1e-6


def test_states_are_found_by_their_rows():
    torch.manual_seed(0)
    x, weight, rows = torch.randn(2, 6), torch.randn(6, 4), torch.tensor([3, 1], dtype=torch.int32)
    states = torch.randn(5, 6, 3)
    alone, before = states[rows.long()].clone(), states.clone()
    y = conv_package.causal_conv1d_update(x, states, weight, conv_state_indices=rows)
    assert torch.equal(y, conv_package.causal_conv1d_update(x, alone, weight))
    assert torch.equal(states[rows.long()], alone)
    assert torch.equal(states[[0, 2, 4]], before[[0, 2, 4]])
    padded = conv_package.causal_conv1d_update(x, states, weight, conv_state_indices=torch.tensor([2, -1]))
    assert not padded[1].any()
    assert torch.equal(states[[0, 1, 3, 4]], torch.stack([before[0], alone[1], alone[0], before[4]]))
    with pytest.raises(ShapeError, match="M >= width - 1 = 3"):
        conv_package.causal_conv1d_update(x, torch.zeros(2, 6, 2), weight)


def test_last_inputs_of_packed_sequences():
    x, borders = torch.arange(14.0).view(7, 2), torch.tensor([0, 2, 2, 7], dtype=torch.int32)
    states = conv_package.causal_conv1d_varlen_states(x, borders, 3)
    assert states.shape == (3, 2, 3)
    assert torch.equal(states[0], torch.tensor([[0.0, 0, 2], [0, 1, 3]]))
    assert torch.equal(states[1], torch.zeros(2, 3))
    assert torch.equal(states[2], x[4:7].T)


def test_packed_sequences_do_not_see_each_other():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 4, 9), torch.randn(4, 3)
    ids = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2, 2]], dtype=torch.int32)
    packed = conv_package.causal_conv1d_fn(x, weight, seq_idx=ids)
    alone = [conv_package.causal_conv1d_fn(part, weight) for part in x.split([2, 4, 3], dim=-1)]
    assert relative_error(packed, torch.cat(alone, dim=-1)) < 1e-6
    padded = conv_package.causal_conv1d_fn(x, weight, seq_idx=torch.where(ids == 2, -1, ids))
    assert torch.equal(padded[..., :6], packed[..., :6])
    assert not padded[..., 6:].any()


@pytest.mark.parametrize("rms", [False, True])
def test_norm_adds_the_residual_first(rms):
    torch.manual_seed(0)
    x, residual, weight, bias = torch.randn(3, 5, 8), torch.randn(3, 5, 8), torch.randn(8), torch.randn(8)
    y, total = layer_norm.layer_norm_fn(x, weight, bias, residual, prenorm=True, is_rms_norm=rms)
    assert torch.equal(total, x + residual)
    plain = F.rms_norm(total, (8,), weight, 1e-6) + bias if rms else F.layer_norm(total, (8,), weight, bias, 1e-6)
    assert relative_error(y, plain) < 1e-6
    reference = (layer_norm.rms_norm_ref if rms else layer_norm.layer_norm_ref)(x, weight, bias, residual, upcast=True)
    assert relative_error(y, reference) < 1e-6
    old = layernorm.layer_norm_fn(x, weight, bias, residual, 1e-6, False, False, rms)
    assert torch.equal(old, y)
    first, kept = layer_norm.layer_norm_fn(
        x.bfloat16(), weight, bias, prenorm=True, residual_in_fp32=True, is_rms_norm=rms
    )
    assert (first.dtype, kept.dtype) == (torch.bfloat16, torch.float32)


def test_norm_of_two_branches_and_masks():
    torch.manual_seed(0)
    x, x1, weight = torch.randn(4, 8), torch.randn(4, 8), torch.randn(8)
    y, y1, total, mask, mask1 = layer_norm.layer_norm_fn(
        x, weight, None, x1=x1, weight1=2 * weight, dropout_p=0.5, prenorm=True, return_dropout_mask=True
    )
    assert relative_error(y1, 2 * y) < 1e-6
    assert relative_error(total, 2 * (x * mask + x1 * mask1)) < 1e-6
    masks = {"dropout_p": 0.5, "dropout_mask": mask, "dropout_mask1": mask1}
    assert relative_error(layer_norm.layer_norm_ref(x, weight, None, x1=x1, upcast=True, **masks), y) < 1e-6
    with pytest.raises(ConfigError, match="rowscale"):
        layer_norm.layer_norm_fn(x, weight, None, x1=x1, rowscale=torch.ones(4))
    scaled = layer_norm.rms_norm_fn(x, weight, None, rowscale=torch.full((4,), 3.0), eps=0.0)
    assert relative_error(scaled, layer_norm.rms_norm_fn(x, weight, None, eps=0.0)) < 1e-6


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("group", [None, 4])
def test_gated_norm(group, before):
    torch.manual_seed(0)
    x, z, weight = torch.randn(3, 5, 8), torch.randn(3, 5, 8), torch.randn(8)
    y = layernorm_gated.rmsnorm_fn(x, weight, None, z, 1e-5, group, before)
    assert relative_error(y, layernorm_gated.rms_norm_ref(x, weight, None, z, 1e-5, group, before)) < 1e-6
    module = layernorm_gated.RMSNorm(8, group_size=group, norm_before_gate=before)
    assert module.bias is None
    assert [name for name, _ in module.named_parameters()] == ["weight"]
    with torch.no_grad():
        module.weight.copy_(weight)
    assert torch.equal(module(x, z), y)
    with pytest.raises(ShapeError, match="divisor of C = 8"):
        layernorm_gated.rmsnorm_fn(x, weight, None, group_size=3)


@pytest.mark.parametrize("heads", [None, 4])
def test_state_updates_are_the_scan(heads):
    torch.manual_seed(0)
    shape = (6,) if heads is None else (heads, 6)
    x, dt, z = (torch.randn(9, 2, *shape) for _ in range(3))
    A, D, bias = -torch.rand(*shape, 5), torch.randn(shape), torch.randn(shape)
    B, C = torch.randn(9, 2, 5), torch.randn(9, 2, 5)
    state = torch.zeros(2, *shape, 5)
    spare = torch.randn(4, *shape, 5)
    spare[[2, 0]] = 0
    steps = []
    for i in range(9):
        rest = (x[i], dt[i], A, B[i], C[i], D, z[i], bias, True)
        steps.append(selective_state_update(state, *rest))
        rows = selective_state_update(spare, *rest, state_batch_indices=torch.tensor([2, 0], dtype=torch.int32))
        assert torch.equal(rows, steps[-1])
    flat = [t.flatten(2).permute(1, 2, 0) for t in (x, dt, z)]
    whole, last = interface.selective_scan_fn(
        flat[0], flat[1], A.flatten(0, -2), B.permute(1, 2, 0), C.permute(1, 2, 0), D.flatten(), flat[2],
        bias.flatten(), True, True,
    )  # fmt: skip
    assert relative_error(torch.stack(steps).flatten(2).permute(1, 2, 0), whole) < 1e-5
    assert relative_error(state.flatten(1, -2), last) < 1e-5
    assert selective_state_update_ref(state, x[0], dt[0], A, B[0], C[0]).shape == x[0].shape


def ssd_arguments(groups=1):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "x": normal(2, 13, 4, 3), "dt": normal(2, 13, 4), "A": -normal(4).abs(), "B": normal(2, 13, groups, 5),
        "C": normal(2, 13, groups, 5), "D": normal(4), "z": normal(2, 13, 4, 3), "dt_bias": normal(4),
    }  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2])
def test_chunked_scan_is_the_plain_one(groups):
    arguments = ssd_arguments(groups)
    y = ssd_combined.mamba_chunk_scan_combined(**arguments, chunk_size=4, dt_softplus=True)
    plain = ssd_combined.ssd_selective_scan(**arguments, dt_softplus=True)
    assert relative_error(y, plain) < 1e-10
    wide = {**arguments, "A": arguments["A"][:, None, None].expand(4, 3, 5)}  # the general form, on Mamba-1's loop
    assert relative_error(ssd_combined.ssd_selective_scan(**wide, dt_softplus=True), plain) < 1e-6


def test_states_of_packed_sequences():
    arguments = {name: t[:1] if t.dim() > 2 else t for name, t in ssd_arguments().items()}
    ids = torch.tensor([[0] * 5 + [1] * 8])
    borders = torch.tensor([0, 5, 13])
    y, last, ends = ssd_combined.mamba_chunk_scan_combined(
        **arguments, chunk_size=4, dt_softplus=True, seq_idx=ids, cu_seqlens=borders, return_final_states=True,
        return_varlen_states=True,
    )  # fmt: skip
    parts = [
        {name: t[:, part] if t.dim() > 2 else t for name, t in arguments.items()} for part in (slice(5), slice(5, 13))
    ]
    alone = [
        ssd_combined.mamba_chunk_scan_combined(**part, chunk_size=4, dt_softplus=True, return_final_states=True)
        for part in parts
    ]
    assert relative_error(y, torch.cat([found[0] for found in alone], dim=1)) < 1e-10
    assert relative_error(ends, torch.cat([found[1] for found in alone])) < 1e-10
    assert relative_error(last, alone[1][1]) < 1e-10


def test_discrete_form():
    torch.manual_seed(0)
    X, A = torch.randn(2, 12, 3, 4).double(), -torch.rand(2, 12, 3).double()
    B, C = torch.randn(2, 12, 3, 5).double(), torch.randn(2, 12, 3, 5).double()
    start = torch.randn(2, 1, 3, 4, 5).double()
    y, state = ssd_minimal_discrete(X, A, B, C, 4, start)
    h = start.squeeze(1)
    for i in range(12):
        h = A[:, i].exp()[..., None, None] * h + X[:, i, :, :, None] * B[:, i, :, None, :]
        assert relative_error(y[:, i], (h * C[:, i, :, None, :]).sum(-1)) < 1e-10
    assert relative_error(state, h) < 1e-10
    assert relative_error(segsum(A.mT).exp(), segsum_unstable(A.mT).exp()) < 1e-10


@pytest.mark.parametrize("gated", [False, True])
def test_raw_calls(gated):
    case = SCANS[1]
    arguments = {name: None if t is None else t.detach() for name, t in scan_arguments(case).items()}
    given = {**arguments, "z": arguments["z"] if gated else None}
    y, kept, *rest = selective_scan_cuda.fwd(*given.values(), True)
    assert relative_error(kept[:, :, -1, 1::2], GIVEN["scan1.last_state"]) < 1e-5
    if gated:
        assert relative_error(rest[0], GIVEN["scan1.out"]) < 1e-5
    dz = torch.empty_like(arguments["z"]) if gated else None
    found = selective_scan_cuda.bwd(*given.values(), GIVEN["scan1.weight"], kept, y, dz, True, True)
    assert len(found) == (9 if gated else 7)
    if gated:
        for name, gradient in zip(("u", "delta", "A", "B", "C", "D", "delta_bias", "z"), found, strict=False):
            assert relative_error(gradient, GIVEN[f"scan1.grad.{name}"]) < 1e-4, name
        assert torch.equal(dz, found[7])
    ungated = [given[name] for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")]
    for module in (selective_scan_cuda_core, selective_scan_cuda_oflex):
        again, kept = module.fwd(*ungated, True, 1)
        assert relative_error(again, y) < 1e-6
        assert len(module.bwd(*ungated, torch.ones_like(y), kept, True, 1)) == 7
    half = selective_scan_cuda_oflex.fwd(ungated[0].bfloat16(), *ungated[1:], True, 1, True)[0]
    assert half.dtype == torch.float32
    with pytest.raises(AttributeError, match=r"selective_scan_cuda.fwd_varlen.*wavemamba.ops.selective_scan"):
        selective_scan_cuda.fwd_varlen()
    assert raw.__doc__


NAMES = {
    interface.selective_scan_fn: "u delta A B C D z delta_bias delta_softplus return_last_state",
    interface.selective_scan_ref: "u delta A B C D z delta_bias delta_softplus return_last_state",
    interface.mamba_inner_fn: "xz conv1d_weight conv1d_bias x_proj_weight delta_proj_weight out_proj_weight "
    "out_proj_bias A B C D delta_bias B_proj_bias C_proj_bias delta_softplus checkpoint_lvl b_rms_weight c_rms_weight "
    "dt_rms_weight b_c_dt_rms_eps",
    conv_package.causal_conv1d_fn: "x weight bias seq_idx initial_states return_final_states final_states_out "
    "activation",
    conv_package.causal_conv1d_update: "x conv_state weight bias activation cache_seqlens conv_state_indices",
    layer_norm.layer_norm_fn: "x weight bias residual x1 weight1 bias1 eps dropout_p rowscale prenorm "
    "residual_in_fp32 is_rms_norm return_dropout_mask",
    layernorm.rms_norm_fn: "x weight bias residual prenorm residual_in_fp32 eps",
    selective_state_update: "state x dt A B C D z dt_bias dt_softplus state_batch_indices",
    ssd_combined.mamba_chunk_scan_combined: "x dt A B C chunk_size D z dt_bias initial_states seq_idx cu_seqlens "
    "dt_softplus dt_limit return_final_states return_varlen_states state_dtype",
    scan_package.Mamba: "d_model d_state d_conv expand dt_rank dt_min dt_max dt_init dt_scale dt_init_floor conv_bias "
    "bias use_fast_path layer_idx device dtype bimamba_type if_divide_out init_layer_scale",
}


@pytest.mark.parametrize("function", NAMES, ids=lambda function: function.__name__)
def test_parameter_names(function):
    assert list(inspect.signature(function).parameters) == NAMES[function].split()
