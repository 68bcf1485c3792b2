"""The dtype that a sampled model computes in."""

from __future__ import annotations

import copy

import pytest
import torch
from model_zoo import CASES, build, inputs
from support import relative_error
from torch import nn

from wavemamba import ConfigError, Sampler, SolverError
from wavemamba.sampling import precision
from wavemamba.sampling.precision import choose_precision, computing_in, converted

QUICK = {"solver": "heun", "steps": 2, "progress": False}


@pytest.mark.parametrize("case", CASES)
def test_every_model_in_bfloat16_is_near_itself_in_float32(case):
    model = build(case).eval()
    x, t, y = inputs(model)
    with torch.no_grad():
        wide = model(x, t, y)
        with converted(model, torch.bfloat16):
            assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
            narrow = computing_in(model, torch.bfloat16)(x, t, y=y)
        assert torch.equal(model(x, t, y), wide)
    assert narrow.dtype == torch.float32
    assert relative_error(narrow, wide) < 8e-3


def test_a_live_model_has_its_own_weights_again(make_model):
    model = make_model()
    before, told = copy.deepcopy(model.state_dict()), []
    model.register_forward_hook(lambda module, given, result: told.append((given[0].dtype, given[1].dtype)))
    model.patch_embed.register_forward_hook(lambda module, given, result: told.append(result.dtype))
    sampler = Sampler(model, dtype="bfloat16")
    steps = []
    pictures = sampler([0, 1], [0, 1], callback=lambda at: steps.append(at.x.dtype), **QUICK)
    assert set(told) == {(torch.bfloat16, torch.float32), torch.bfloat16}
    assert set(steps) == {sampler.noise([0]).dtype} == {torch.float32}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.dtype == before[name].dtype for name, value in model.state_dict().items())
    plain = Sampler(model)([0, 1], [0, 1], **QUICK)
    assert 0 < relative_error(pictures.images, plain.images) < 2e-2
    assert (pictures.record["dtype"], pictures.record["dtype_reason"]) == ("bfloat16", "as asked for")
    assert (plain.record["dtype"], plain.record["dtype_reason"]) == ("float32", "the model's own")
    assert pictures.record["weights_sha256"] == plain.record["weights_sha256"]
    nn.init.constant_(model.head.linear.weight, float("nan"))
    with pytest.raises(SolverError):
        sampler([0], [0], **QUICK)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_no_digits_of_the_state_are_lost(folder):
    """Pictures keep what bfloat16 would round away."""
    images = Sampler.from_pretrained(folder, dtype=torch.bfloat16)([0], [0], **QUICK).images
    assert not torch.equal(images, images.bfloat16().float())


@pytest.mark.parametrize(("gain", "chosen"), [(4.0, "bfloat16"), (1.4, "float32"), (0.2, "float32")])
def test_the_faster_dtype_is_taken_and_said(folder, monkeypatch, gain, chosen):
    asked = []
    monkeypatch.setattr(precision, "bfloat16_gain", lambda *sizes: asked.append(sizes) or gain)
    sampler = Sampler.from_pretrained(folder, dtype="auto")
    assert {str(p.dtype) for p in sampler.model.parameters()} == {f"torch.{chosen}"}
    record = sampler([0], [0], **QUICK).record
    assert record["dtype"] == chosen
    assert record["dtype_reason"].startswith("auto: matrix products are ")
    assert str(sampler.precision) == f"{chosen} ({record['dtype_reason']})"
    assert set(asked) == {(256, 16, torch.get_num_threads())}  # the largest matrix of the model


def test_the_measurement_is_made_once():
    precision.bfloat16_gain.cache_clear()
    before = torch.get_num_threads()
    first = precision.bfloat16_gain(8, 8, before)
    assert first > 0
    assert precision.bfloat16_gain(8, 8, before) == first
    assert precision.bfloat16_gain.cache_info().misses == 1


def test_on_other_devices(monkeypatch):
    model = nn.Linear(2, 2)
    assert choose_precision("auto", model, torch.device("meta")).dtype == torch.float32
    for able, chosen in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able)
        assert choose_precision("auto", model, torch.device("cuda")).dtype == chosen


@pytest.mark.parametrize("dtype", ["bfloat17", torch.int8, 16])
def test_a_dtype_that_is_none(folder, model, dtype):
    with pytest.raises(ConfigError, match="dtype: expected"):
        Sampler(model, dtype=dtype)
    with pytest.raises(ConfigError, match="dtype: expected"):
        Sampler.from_pretrained(folder, dtype=dtype)


def test_names_and_dtypes_are_the_same(folder):
    by_name, by_dtype = (Sampler.from_pretrained(folder, dtype=dtype) for dtype in ("bfloat16", torch.bfloat16))
    assert by_name.dtype == by_dtype.dtype == torch.bfloat16
