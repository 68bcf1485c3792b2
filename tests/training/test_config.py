"""The configuration checks itself, and says of each field who may change it."""

import dataclasses

import pytest

from wavemamba.errors import ConfigError
from wavemamba.training import TrainConfig
from wavemamba.training.options import options_of


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": -1}, "lr: expected a number >= 0, got -1"),
        ({"lr": float("nan")}, "lr: expected a number >= 0, got nan"),
        ({"steps": 2.5}, "steps: expected an integer >= 1, got 2.5"),
        ({"batch_size": True}, "batch_size: expected an integer >= 1, got True"),
        ({"holdout": 1.0}, "holdout: expected a number >= 0 and < 1, got 1.0"),
        ({"epochs": 0}, "epochs: expected a number > 0, got 0"),
        ({"path": "gpv"}, "did you mean 'gvp'"),
        ({"precision": "fp8"}, "precision: expected one of 'no', 'bf16', 'fp16'"),
        ({"trackers": ("tensorbord",)}, "did you mean 'tensorboard'"),
        ({"trackers": "tensorboard"}, "expected several values in a tuple"),
        ({"ema": ()}, "ema: expected one or more"),
        ({"ema": (0.9, 0.9)}, "ema: expected one or more different decays"),
        ({"channels": 2}, "channels: expected 1"),
        ({"model_options": {"make_block": print}}, "model_options: expected numbers, words"),
        ({"mirror": 1}, "mirror: expected bool, got 1"),
        ({"out": ""}, "out: expected the folder"),
    ],
)
def test_values_are_checked(values, message):
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{"out": "x", **values})
    assert message in str(caught.value)


def test_misspelt_names_name_the_nearest():
    with pytest.raises(ConfigError, match="did you mean batch_size"):
        TrainConfig.from_dict({"out": "x", "batchsize": 3})
    config = TrainConfig(out="x", ema=[0.9, 0.99])
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert config.ema == (0.9, 0.99)


def test_every_field_says_whether_a_resumed_run_may_change_it():
    options = options_of(TrainConfig)
    assert options.keys() == {field.name for field in dataclasses.fields(TrainConfig)}
    assert all(option.help and option.group for option in options.values())
    constant, cosine = TrainConfig(out="x"), TrainConfig(out="x", schedule="cosine")
    assert {name for name, option in options.items() if option.change == "never"} == constant.settings().keys()
    assert cosine.settings().keys() - constant.settings().keys() == {"steps"}
    assert {"lr", "batch_size", "ema", "seed", "init_from"} <= constant.settings().keys()
    assert not {"out", "workers", "accumulate", "quiet"} & cosine.settings().keys()


def test_a_frozen_config_stays():
    config = TrainConfig(out="x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.lr = 1.0
    assert config.total_steps(100) == 10_000
    assert TrainConfig(out="x", epochs=1.5, batch_size=8).total_steps(100) == 19
    with pytest.raises(ConfigError, match="epochs"):
        TrainConfig(out="x", epochs=1.5).total_steps(None)
