"""The packages' modules: parameter names, one step at a time, two directions, language models, installing."""

import importlib
import sys

import pytest
import torch
import torch.nn.functional as F
from support import relative_error

from wavemamba import compat
from wavemamba.compat.mamba_ssm.models.config_mamba import MambaConfig
from wavemamba.compat.mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel, MixerModel, create_block
from wavemamba.compat.mamba_ssm.modules.mamba2 import Mamba2
from wavemamba.compat.mamba_ssm.modules.mamba_simple import Block, Mamba
from wavemamba.compat.mamba_ssm.modules.mha import MHA
from wavemamba.compat.mamba_ssm.ops.selective_scan_interface import mamba_inner_ref, selective_scan_ref
from wavemamba.compat.mamba_ssm.utils.generation import InferenceParams, decode, sample
from wavemamba.errors import CheckpointError, ConfigError, ShapeError
from wavemamba.ops import backends


def noisy(module):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def test_mamba_has_the_packages_parameters():
    shapes = {name: tuple(p.shape) for name, p in Mamba(8, d_state=4).named_parameters()}
    assert shapes == {
        "in_proj.weight": (32, 8), "conv1d.weight": (16, 1, 4), "conv1d.bias": (16,), "x_proj.weight": (9, 16),
        "dt_proj.weight": (16, 1), "dt_proj.bias": (16,), "A_log": (16, 4), "D": (16,), "out_proj.weight": (8, 16),
    }  # fmt: skip
    more = {name for name, _ in Mamba(8, bimamba_type="v2", init_layer_scale=0.1).named_parameters()} - set(shapes)
    back = {"conv1d_b.weight", "conv1d_b.bias", "x_proj_b.weight", "dt_proj_b.weight", "dt_proj_b.bias"}
    assert more == back | {"A_b_log", "D_b", "gamma"}
    mamba = Mamba(8)
    assert mamba.A_log._no_weight_decay
    assert mamba.D._no_weight_decay
    assert mamba.dt_proj.bias._no_reinit


def test_mamba_is_the_inner_function():
    mamba = noisy(Mamba(8, d_state=4)).double()
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    plain = mamba_inner_ref(
        mamba.in_proj(x).mT, mamba.conv1d.weight, mamba.conv1d.bias, mamba.x_proj.weight, mamba.dt_proj.weight,
        mamba.out_proj.weight, None, -mamba.A_log.exp(), D=mamba.D, delta_bias=mamba.dt_proj.bias,
    )  # fmt: skip
    assert relative_error(mamba(x), plain) < 1e-7  # A and D are taken in float32


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_two_directions(kind):
    mamba = noisy(Mamba(8, d_state=4, bimamba_type=kind, if_divide_out=kind == "v2"))
    x = torch.randn(2, 7, 8)

    def scan(x, z, end, A_log):
        conv, x_proj, dt_proj = (getattr(mamba, f"{name}{end}") for name in ("conv1d", "x_proj", "dt_proj"))
        u = F.silu(torch.nn.functional.conv1d(F.pad(x, (3, 0)), conv.weight, conv.bias, groups=16))
        dt, B, C = x_proj(u.mT).split([1, 4, 4], dim=-1)
        return u, dt_proj(dt).mT, -A_log.exp(), B.mT, C.mT, getattr(mamba, f"D{end}"), z

    inner, z = mamba.in_proj(x).mT.chunk(2, dim=1)
    y = selective_scan_ref(*scan(inner, z, "", mamba.A_log), delta_softplus=True)
    if kind == "v2":
        back = selective_scan_ref(*scan(inner.flip(-1), z.flip(-1), "_b", mamba.A_b_log), delta_softplus=True)
        y = (y + back.flip(-1)) / 2
    else:
        u, delta, _, B, C, D, _ = scan(inner, z, "", mamba.A_log)
        flipped = [t.flip(-1) for t in (u, delta)]
        back = selective_scan_ref(
            *flipped, -mamba.A_b_log.exp(), B.flip(-1), C.flip(-1), D, z.flip(-1), delta_softplus=True
        )
        y = y + back.flip(-1)
    assert relative_error(mamba(x), mamba.out_proj(y.mT)) < 1e-5
    with pytest.raises(ConfigError, match="one direction"):
        mamba.step(x[:, :1], *mamba.allocate_inference_cache(2, 9))


MIXERS = {
    "mamba": lambda: Mamba(8, d_state=4, layer_idx=0),
    "mamba2": lambda: Mamba2(16, d_state=4, headdim=8, layer_idx=0, chunk_size=4),
    "mamba2-mlp": lambda: Mamba2(16, d_state=4, headdim=8, d_ssm=16, ngroups=2, rmsnorm=False, layer_idx=0),
    "mamba2-wide-skip": lambda: Mamba2(16, d_state=4, headdim=8, D_has_hdim=True, norm_before_gate=True, layer_idx=0),
    "attention": lambda: MHA(16, 4, num_heads_kv=2, mlp_dim=8, d_conv=3, causal=True, layer_idx=0),
}


@pytest.mark.parametrize("name", MIXERS)
def test_steps_are_the_whole_sequence(name):
    mixer = noisy(MIXERS[name]()).eval()
    x = torch.randn(2, 9, mixer.in_proj.in_features)
    whole = mixer(x)
    params = InferenceParams(max_seqlen=9, max_batch_size=2)
    parts = [mixer(x[:, :5], inference_params=params)]
    params.seqlen_offset = 5
    for step in range(5, 9):
        parts.append(mixer(x[:, step : step + 1], inference_params=params))
        params.seqlen_offset += 1
    assert relative_error(torch.cat(parts, dim=1), whole) < 1e-5


@pytest.mark.parametrize("name", MIXERS)
def test_wrong_tokens_are_named(name):
    mixer = MIXERS[name]()
    x = torch.randn(2, 2, mixer.in_proj.in_features)
    for wrong in (x[..., 1:], x[0]):
        with pytest.raises(ShapeError, match=r"expected \(any, any, \d+\)"):
            mixer(wrong)
    mixer.layer_idx = None
    with pytest.raises(ConfigError, match="layer_idx"):
        mixer(x, inference_params=InferenceParams(2, 2))


@pytest.mark.parametrize("name", [name for name in MIXERS if name != "attention"])
def test_a_step_is_one_token(name):
    mixer = MIXERS[name]()
    x = torch.randn(2, 2, mixer.in_proj.in_features)
    with pytest.raises(ShapeError, match=r"expected \(any, 1, \d+\), got \(2, 2, \d+\); .* one token"):
        mixer.step(x, *mixer.allocate_inference_cache(2, 2))


def test_attention_keeps_as_many_tokens_as_there_is_room_for():
    x = torch.randn(2, 2, 16)
    with pytest.raises(ShapeError, match=r"at most 1 tokens in all, .* got 2; raise max_seqlen"):
        MIXERS["attention"]()(x, inference_params=InferenceParams(1, 2))


@pytest.mark.parametrize("name", MIXERS)
def test_another_batch_begins_with_its_own_states(name):
    mixer = MIXERS[name]().eval()
    x = torch.randn(3, 4, mixer.in_proj.in_features)
    params = InferenceParams(4, 3)
    mixer(x, inference_params=params)
    params.seqlen_offset = 4
    with pytest.raises(ShapeError, match="a batch of 3, which the sequence began with, got 2"):
        mixer(x[:2, :1], inference_params=params)
    params.reset(4, 1)
    mixer(x[:1, :3], inference_params=params)
    params.seqlen_offset = 3
    assert relative_error(mixer(x[:1, 3:], inference_params=params), mixer(x[:1])[:, 3:]) < 1e-5


def test_mamba2_steps_in_float64():
    mixer = noisy(Mamba2(16, d_state=4, headdim=8)).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    states = mixer.allocate_inference_cache(2, 5)
    steps = [mixer.step(x[:, i : i + 1], *states)[0] for i in range(5)]
    assert relative_error(torch.cat(steps, dim=1), mixer(x)) < 1e-13


def test_packed_sequences_in_mamba2():
    mixer = noisy(Mamba2(16, d_state=4, headdim=8, chunk_size=4, layer_idx=0))
    x, ids, borders = torch.randn(1, 9, 16), torch.tensor([[0] * 4 + [1] * 5], dtype=torch.int32), [0, 4, 9]
    params = InferenceParams(9, 2)
    packed = mixer(x, seq_idx=ids, cu_seqlens=torch.tensor(borders), inference_params=params)
    alone = [mixer(part) for part in x.split([4, 5], dim=1)]
    assert relative_error(packed, torch.cat(alone, dim=1)) < 1e-5
    params.seqlen_offset = 9
    more = torch.randn(2, 1, 16)
    goes_on = mixer(more, inference_params=params)
    again = mixer(torch.cat([x[:, 4:], more[1:]], dim=1))[:, -1:]
    assert relative_error(goes_on[1:], again) < 1e-5
    flat = mixer(x.flatten(0, 1), seqlen=9)
    assert relative_error(flat, mixer(x).flatten(0, 1)) < 1e-6


def test_layers_are_called_as_modules():
    mamba = Mamba(8)
    calls = []
    for layer in (mamba.in_proj, mamba.conv1d, mamba.x_proj, mamba.dt_proj, mamba.out_proj):
        layer.register_forward_hook(lambda module, inputs, output: calls.append(module))
    mamba(torch.randn(1, 5, 8))
    assert len(calls) == 5
    assert mamba.conv1d(torch.randn(1, 16, 5)).shape == (1, 16, 8)  # as nn.Conv1d, for forks that call it


CONFIG = MambaConfig(d_model=16, n_layer=3, vocab_size=29, ssm_cfg={"layer": "Mamba2", "headdim": 8, "d_state": 4},
                     attn_layer_idx=[1], attn_cfg={"num_heads": 2, "causal": True}, d_intermediate=8)  # fmt: skip


@pytest.mark.parametrize("config", [CONFIG, MambaConfig(d_model=16, n_layer=2, vocab_size=29, fused_add_norm=False)])
def test_language_model_decodes_greedily(config, tmp_path):
    model = MambaLMHeadModel(config).eval()
    assert model.lm_head.weight is model.backbone.embedding.weight
    assert model.lm_head.out_features == 32
    prompt = torch.randint(29, (2, 4))
    logits = model(prompt).logits
    assert logits.shape == (2, 4, 32)
    assert relative_error(model(prompt, num_last_tokens=1).logits, logits[:, -1:]) < 1e-5
    found = model.generate(prompt, 9, return_dict_in_generate=True, output_scores=True)
    text = prompt
    for _ in range(5):
        text = torch.cat([text, model(text).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found.sequences, text)
    assert len(found.scores) == 5
    model.save_pretrained(tmp_path / "saved")
    again = MambaLMHeadModel.from_pretrained(str(tmp_path / "saved"))
    assert torch.equal(again(prompt).logits, logits)


def test_sampling_keeps_to_the_likeliest():
    logits = torch.tensor([[0.0, 3.0, 2.0, -1.0]]).log_softmax(-1).expand(400, 4)
    torch.manual_seed(0)
    assert set(sample(logits).tolist()) == {1}
    assert set(sample(logits, top_k=2).tolist()) == {1, 2}
    assert set(sample(logits, top_k=0, top_p=0.5).tolist()) == {1}
    assert set(sample(logits, top_k=0, min_p=0.2).tolist()) == {1, 2}
    assert set(sample(logits, top_k=0, temperature=5.0).tolist()) == {0, 1, 2, 3}
    with pytest.raises(ConfigError, match="temperature"):
        sample(logits, top_k=0, temperature=0.0)
    with pytest.raises(ConfigError, match="repetition_penalty: expected > 0, got 0"):
        decode(torch.zeros(1, 1, dtype=torch.long), None, 3, repetition_penalty=0)


def test_blocks_of_both_releases():
    x = torch.randn(2, 5, 8)
    old = Block(8, lambda dim: Mamba(dim), torch.nn.LayerNorm, residual_in_fp32=True)
    hidden, residual = old(x)
    assert torch.equal(residual, x)
    assert old(hidden, residual)[0].shape == x.shape
    new = create_block(8, 16, rms_norm=True, fused_add_norm=True, layer_idx=0)
    assert new(x)[0].shape == x.shape
    assert MixerModel(8, 2, 0, 11)(torch.randint(11, (2, 5))).shape == x.shape
    with pytest.raises(ConfigError, match="did you mean 'Mamba2'"):
        create_block(8, ssm_cfg={"layer": "Mamba22"})
    with pytest.raises(ConfigError, match="rotary"):
        MHA(16, 4, rotary_emb_dim=4)


def test_installing_and_uninstalling():
    assert "mamba_ssm" not in sys.modules
    compat.install()
    try:
        package = importlib.import_module("mamba_ssm")
        assert package.Mamba is Mamba
        for name in ("mamba_ssm.ops.selective_scan_interface", "mamba_ssm.ops.triton.layernorm",
                     "mamba_ssm.ops.triton.layer_norm", "mamba_ssm.modules.mamba_simple", "mamba_ssm.utils.generation",
                     "mamba_ssm.models.mixer_seq_simple", "causal_conv1d.causal_conv1d_interface",
                     "causal_conv1d.causal_conv1d_varlen", "selective_scan_cuda", "selective_scan_cuda_core",
                     "selective_scan_cuda_oflex"):  # fmt: skip
            assert importlib.import_module(name).__name__ == f"wavemamba.compat.{name}"
        mixer = importlib.import_module("mamba_ssm.models.mixer_seq_simple")
        assert callable(mixer._init_weights)
        with pytest.raises(AttributeError, match=r"wavemamba.ops.causal_conv1d"):
            importlib.import_module("causal_conv1d_cuda").causal_conv1d_fwd()
        for name, remedy in (("mamba_ssm.modules.mamba3", "docs/migrate.md"),
                             ("mamba_ssm.ops.triton.ssd_chunk_state", "wavemamba.ops.ssd_scan"),
                             ("mamba_ssm.modules.mamba2_simple", "mamba2.Mamba2"),
                             ("mamba_ssm.distributed.tensor_parallel", "fsdp"),
                             ("causal_conv1d.other", "docs/migrate.md")):  # fmt: skip
            with pytest.raises(ModuleNotFoundError, match=f"not offered by wavemamba.compat; .*{remedy}"):
                importlib.import_module(name)
        finders = list(sys.meta_path)
        compat.install()  # again
        assert sys.meta_path == finders
        assert all(line.reason is not None for line in backends() if line.backend == "mamba_ssm")
    finally:
        compat.uninstall()
    assert not {"mamba_ssm", "causal_conv1d", "selective_scan_cuda", "mamba_ssm.ops"} & set(sys.modules)
    assert sys.meta_path == finders[:-1]


def test_working_packages_are_left_alone(tmp_path, monkeypatch):
    for name in ("mamba_ssm", "selective_scan_cuda"):
        (tmp_path / f"{name}.py").write_text("works = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"mamba_ssm: .* it works"):
        compat.install()
    assert not hasattr(sys.modules.get("mamba_ssm"), "Mamba")
    (tmp_path / "selective_scan_cuda.py").write_text("raise ImportError('undefined symbol')\n")
    sys.modules.pop("selective_scan_cuda", None)
    importlib.invalidate_caches()
    compat.install()
    try:
        assert importlib.import_module("mamba_ssm").Mamba is Mamba
    finally:
        compat.uninstall()
    with pytest.raises(ConfigError, match="did you mean mamba_ssm"):
        compat.install("mamba-ssm")


def test_state_dicts_of_both_mixers():
    from wavemamba.compat import from_mamba, to_mamba
    from wavemamba.layers import MambaMixer

    theirs = noisy(Mamba(8, bimamba_type="v2"))
    ours = MambaMixer(8, bidirectional=True)
    ours.load_state_dict(from_mamba(theirs.state_dict()))
    x = torch.randn(2, 7, 8)
    assert relative_error(ours(x), theirs(x)) < 1e-6
    back = to_mamba(ours.state_dict())
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())


def test_state_dicts_of_mamba2_and_its_mixer():
    from wavemamba.compat import from_mamba2, to_mamba2
    from wavemamba.layers import Mamba2Mixer

    theirs = noisy(Mamba2(16, d_state=4, headdim=8, chunk_size=4))
    ours = Mamba2Mixer(16, d_state=4, head_dim=8)
    ours.load_state_dict(from_mamba2(theirs.state_dict()))
    x = torch.randn(2, 70, 16)
    assert relative_error(ours(x), theirs(x)) < 1e-6
    back = to_mamba2(ours.state_dict())
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())
    without = noisy(Mamba2(16, d_state=4, headdim=8, conv_bias=False))
    ours.load_state_dict(from_mamba2(without.state_dict()))
    assert relative_error(ours(x), without(x)) < 1e-6
    for call, message in (
        (lambda: from_mamba2(Mamba2(16, headdim=8, bias=True).state_dict()), "in_proj.bias"),
        (
            lambda: from_mamba2(Mamba2(16, headdim=8, D_has_hdim=True).state_dict()),
            "D: expected one skip factor a head",
        ),
        (lambda: to_mamba2(Mamba2Mixer(16, bidirectional=True).state_dict()), "directions.1"),
    ):
        with pytest.raises(CheckpointError, match=message):
            call()
