"""Every Triton kernel compiled ahead of time for two generations of GPU: it builds, and its registers do not spill."""

import importlib

import pytest
import torch

pytest.importorskip("triton", minversion="3.3")
from triton_aot import compile_launch, disassemble, launches_of  # needs triton

from wavemamba.ops.causal_conv1d.op import ConvInputs
from wavemamba.ops.haar.op import HaarInputs
from wavemamba.ops.selective_scan.op import ScanInputs

scan = importlib.import_module("wavemamba.ops.selective_scan.triton")
plan = importlib.import_module("wavemamba.ops.selective_scan.triton_plan")
conv = importlib.import_module("wavemamba.ops.causal_conv1d.triton")
haar = importlib.import_module("wavemamba.ops.haar.triton")

AMPERE, HOPPER = 80, 90
CAPABILITIES = pytest.mark.parametrize("capability", [AMPERE, HOPPER])


def scan_call(
    dtype, batch=2, length=256, width=1024, state=16, with_order=True, parts=True, states=False, packed=False
):
    """A scan and its gradients as the host would launch them: with D, gate, bias and softplus, with states flowing."""

    def empty(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype)

    def call():
        row, number = (batch, length, width), torch.float32
        u, delta, A = empty(*row), empty(*row), empty(width, state, dtype=number)
        B, C = empty(batch, length, 1, state), empty(batch, length, 1, state)
        D, z, bias = (empty(width, dtype=number), empty(*row), empty(width, dtype=number)) if parts else (None,) * 3
        first = empty(batch, width, state, dtype=number) if states else None
        order = torch.arange(length) if with_order else None
        seq_idx = torch.zeros(batch, length, dtype=torch.int64) if packed else None
        inputs = ScanInputs(u, delta, A, B, C, D, z, bias, parts, first, order, seq_idx)
        y, last, kept = scan.forward(inputs, True)
        scan.backward(inputs, y, last if states else None, kept)

    return call


def scan_launches(monkeypatch, *arguments, **options):
    return launches_of(monkeypatch, (scan, plan), scan_call(*arguments, **options))


@pytest.mark.parametrize(
    ("capability", "dtype", "with_order"),
    [
        (HOPPER, torch.bfloat16, True),
        (HOPPER, torch.bfloat16, False),
        (AMPERE, torch.bfloat16, True),
    ],
)
def test_scan_keeps_its_states_in_registers(monkeypatch, capability, dtype, with_order):
    launches = scan_launches(monkeypatch, dtype, with_order=with_order)
    assert [launch.name for launch in launches] == ["forward", "backward"]
    forward, backward = (compile_launch(launch, capability) for launch in launches)
    assert backward.spilled == 0
    assert forward.shared == 0  # nothing is exchanged between threads
    if capability == HOPPER:
        assert forward.spilled == 0
        # Resident at once on 132 multiprocessors: the 2,048 programs of 64 images of 256 tokens, 1,024 channels.
        assert forward.registers <= 128
    else:
        assert forward.spilled <= 16  # outside its loop


def test_scan_between_states_compiles(monkeypatch):
    for launch in scan_launches(monkeypatch, torch.bfloat16, states=True):
        assert compile_launch(launch, HOPPER).spilled == 0


@CAPABILITIES
def test_packed_scan_compiles(monkeypatch, capability):
    for launch in scan_launches(monkeypatch, torch.bfloat16, packed=True):
        assert compile_launch(launch, capability).spilled <= (16 if capability == AMPERE else 0)


def test_scan_without_optional_parts_compiles(monkeypatch):
    for launch in scan_launches(monkeypatch, torch.float16, width=40, state=3, with_order=False, parts=False):
        compile_launch(launch, HOPPER)


@pytest.mark.parametrize("packed", [False, True])
def test_scan_of_segments_compiles(monkeypatch, packed):
    monkeypatch.setattr(plan, "multiprocessors", lambda tensor: 132)
    launches = scan_launches(monkeypatch, torch.bfloat16, batch=1, length=4096, packed=packed)
    assert [launch.name for launch in launches] == [
        "summarize", "combine", "forward", "summarize", "combine", "backward",
    ]  # fmt: skip
    for launch in launches:
        if launch.name in ("summarize", "combine"):
            assert compile_launch(launch, HOPPER).spilled == 0


def test_compilation_depends_on_neither_batch_nor_length(monkeypatch):
    """The arguments that Triton specialises on are those of the model."""

    def keys(**sizes):
        return [
            (launch.name, launch.constants, [
                value if isinstance(value, int) and name not in unspecialised else None
                for name, value in zip(launch.kernel.arg_names, launch.arguments, strict=False)
                if not name.endswith("_b")  # strides of the batch: their divisibility follows from the channels'
            ])
            for launch in scan_launches(monkeypatch, torch.bfloat16, **sizes)
            for unspecialised in [{p.name for p in launch.kernel.params if p.do_not_specialize}]
        ]  # fmt: skip

    assert keys(batch=2, length=256) == keys(batch=3, length=77)


def test_offsets_beyond_32_bits_take_another_compilation(monkeypatch):
    u, A, B = (torch.empty(shape, device="meta") for shape in ((1, 2**21, 1024), (1024, 16), (1, 2**21, 1, 16)))
    assert plan.Plan(ScanInputs(u, u, A, B, B, None, None, None, True, None, None)).wide
    launches = scan_launches(monkeypatch, torch.bfloat16)
    assert not any(launch.constants["WIDE"] for launch in launches)
    monkeypatch.setattr(plan.Plan, "wide", True)
    forward, backward = scan_launches(monkeypatch, torch.float32)
    assert backward.constants["WIDE"]
    compile_launch(forward, HOPPER)


@CAPABILITIES
@pytest.mark.parametrize(
    ("dtype", "packed"),
    [(torch.bfloat16, False), (torch.float32, False), (torch.bfloat16, True)],
    ids=["bf16", "fp32", "packed"],
)
def test_convolution(monkeypatch, capability, dtype, packed):
    x, weight, bias = torch.empty(2, 256, 1024, dtype=dtype), torch.empty(1024, 4), torch.empty(1024)
    first, order = torch.empty(2, 3, 1024, dtype=dtype), torch.arange(256)
    seq_idx = torch.zeros(2, 256, dtype=torch.int64) if packed else None

    def call():
        inputs = ConvInputs(x, weight, bias, True, first, order, seq_idx)
        conv.backward(inputs, conv.forward(inputs))

    forward, backward = (compile_launch(launch, capability) for launch in launches_of(monkeypatch, (conv,), call))
    assert forward.spilled == backward.spilled == 0
    assert "LDG.E.128" in disassemble(forward)  # 16 bytes a thread
    assert ("LDG.E.128" if dtype == torch.float32 else "LDG.E.64") in disassemble(backward)


@pytest.mark.parametrize(
    ("capability", "layout", "inverse"),
    [(HOPPER, "mosaic", False), (HOPPER, "mosaic", True), (HOPPER, "channel", False), (AMPERE, "channel", True)],
)
def test_haar_map(monkeypatch, capability, layout, inverse):
    inputs = HaarInputs(torch.empty(2, 16, 16, 512, dtype=torch.bfloat16), 2, layout, 0.25, inverse)
    launches = launches_of(monkeypatch, (haar,), lambda: haar.forward(inputs))
    assert [launch.name for launch in launches] == ["haar_map"]
    compiled = compile_launch(launches[0], capability)
    assert compiled.spilled == 0
    if layout == "mosaic":
        assert compiled.shared == 0
        assert disassemble(compiled).count("LDG.E.64") == disassemble(compiled).count("STG.E.64") == 16
