"""Paths of a user's own in a training configuration."""

from dataclasses import dataclass

import pytest

from wavemamba import ConfigError
from wavemamba.diffusion import LinearPath, register_path
from wavemamba.training import TrainConfig


def test_a_path_that_is_registered_later_can_be_trained_on(tmp_path):
    settings = {"data": "digits", "out": str(tmp_path), "path": "path_of_this_test"}
    with pytest.raises(ConfigError, match="path_of_this_test"):
        TrainConfig(**settings)

    @register_path
    @dataclass(frozen=True)
    class Mine(LinearPath):
        name = "path_of_this_test"

    assert TrainConfig(**settings).path == Mine.name
