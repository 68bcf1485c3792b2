"""Fixtures that run a test for every op with every backend that can run here."""

from __future__ import annotations

import pytest
import torch
from op_calls import EXAMPLES, Call, calls_of


@pytest.fixture(params=calls_of(*EXAMPLES), ids=str)
def call(request: pytest.FixtureRequest) -> Call:
    """Every op with every backend."""
    return request.param


@pytest.fixture(params=[call for call in calls_of(*EXAMPLES) if len(call.inputs) > 1], ids=str)
def wide_call(request: pytest.FixtureRequest) -> Call:
    """Every op of several tensors, with every backend."""
    return request.param


@pytest.fixture(params=calls_of("selective_scan", "causal_conv1d"), ids=str)
def sequence_call(request: pytest.FixtureRequest) -> Call:
    """Every op along a sequence, which takes an order, with every backend."""
    return request.param


@pytest.fixture(params=calls_of("selective_scan"), ids=str)
def scan_call(request: pytest.FixtureRequest) -> Call:
    """The scan with every backend."""
    return request.param


@pytest.fixture(params=calls_of("to_haar_map", "from_haar_map"), ids=str)
def map_call(request: pytest.FixtureRequest) -> Call:
    """Both Haar maps with every backend."""
    return request.param


@pytest.fixture(autouse=True)
def seed() -> None:
    """Orders and inputs drawn without a generator are the same in every run: tolerances are close to the errors."""
    torch.manual_seed(0)
