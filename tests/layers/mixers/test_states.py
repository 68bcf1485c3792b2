"""Mixers as recurrences, with padding and with packed documents: each is a plain run of what belongs together."""

import pytest
import torch
from support import relative_error

from wavemamba import ConfigError, ShapeError, scan_order
from wavemamba.layers import AttentionMixer, GLAMixer, Mamba2Mixer, MambaMixer

B, L, C = 3, 11, 8
LENGTHS = torch.tensor([11, 4, 1])
KINDS = {
    "mamba1": lambda **options: MambaMixer(C, d_state=4, **options),
    "mamba2": lambda **options: Mamba2Mixer(C, d_state=4, **{"head_dim": 4, **options}),
    "gla": lambda **options: GLAMixer(C, d_state=3, **{"num_heads": 2, **options}),
    "attention": lambda **options: AttentionMixer(C, num_heads=2, **options),
}
SCANS = ("mamba1", "mamba2", "gla")
CAUSAL = {"mamba1": {}, "mamba2": {}, "gla": {}, "attention": {"causal": True}}
"""Every kind as a recurrence."""
VARIANTS = [
    *CAUSAL.items(),
    ("attention", {}),
    ("mamba1", {"d_conv": 1}),
    ("mamba1", {"d_conv": 3, "expand": 1}),
    ("mamba2", {"d_conv": 1, "head_dim": 8}),
    ("gla", {"num_heads": 1, "gate_rank": 2}),
    *((kind, {"bidirectional": True}) for kind in SCANS),
    *((kind, {"bidirectional": True, "cond_dim": 5, "conditioning": "conv_state"}) for kind in ("mamba1", "mamba2")),
]
RECURRENT = [(k, o) for k, o in VARIANTS if "bidirectional" not in o and (k != "attention" or "causal" in o)]
UNCONDITIONED = [(kind, options) for kind, options in VARIANTS if "cond_dim" not in options]


def mixer(kind="mamba1", **options):
    torch.manual_seed(0)
    made = KINDS[kind](**options)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made.double()


def tokens():
    return torch.randn(B, L, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def orders():
    return {"in turn": None, "permuted": torch.randperm(L, generator=torch.Generator().manual_seed(2))}


def gradients(y, *inputs):
    weight = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(3))
    return torch.autograd.grad((y * weight).sum(), inputs)


def restricted(order, keep):
    """The scan order of the rows `keep` alone, numbered among themselves."""
    order = torch.arange(L) if order is None else order
    number = {int(row): i for i, row in enumerate(keep)}
    return torch.tensor([number[int(row)] for row in order if int(row) in number])


@pytest.mark.parametrize(("kind", "options"), RECURRENT)
def test_steps_are_the_whole_sequence(kind, options):
    mix, x = mixer(kind, **options), tokens()
    expected, last = mix(x, return_state=True)
    state = mix.initial_state(B)
    for i in range(L):
        y, state = mix.step(x[:, i], state)
        assert relative_error(y, expected[:, i]) < 1e-12
    for part, whole in zip(state, last, strict=True):
        assert torch.allclose(part, whole, atol=1e-12)
    assert torch.equal(expected, mix(x))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_in_float32_are_the_whole_sequence(kind):
    mix, x = mixer(kind, **CAUSAL[kind]).float(), tokens().float()
    expected, state, rows = mix(x), mix.initial_state(B), []
    for i in range(L):
        y, state = mix.step(x[:, i], state)
        rows.append(y)
    assert relative_error(torch.stack(rows, 1), expected) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [1, 2, 7])
def test_a_sequence_in_two_parts_is_the_whole_with_every_gradient(cut, kind):
    mix, x = mixer(kind, **CAUSAL[kind]), tokens().requires_grad_()
    whole, last = mix(x, return_state=True)
    first, state = mix(x[:, :cut], return_state=True)
    second, end = mix(x[:, cut:], state=state, return_state=True)
    parts = torch.cat([first, second], 1)
    assert relative_error(parts, whole) < 1e-12
    for part, expected in zip(end, last, strict=True):
        assert torch.allclose(part, expected, atol=1e-12)
    wanted = (x, *mix.parameters())
    together = [torch.cat([y.flatten(), *(s.flatten() for s in e)]) for y, e in ((parts, end), (whole, last))]
    for got, expected in zip(gradients(together[0], *wanted), gradients(together[1], *wanted), strict=True):
        assert relative_error(got, expected) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_after_an_order_is_that_of_the_gathered_sequence(kind):
    mix, x = mixer(kind, **CAUSAL[kind]), tokens()
    order = scan_order("hilbert").permutation(1, L).flip(0)
    for part, expected in zip(
        mix(x, order=order, return_state=True)[1], mix(x[:, order], return_state=True)[1], strict=True
    ):
        assert torch.allclose(part, expected, atol=1e-12)


@pytest.mark.parametrize("kind", ["mamba1", "mamba2"])
def test_a_state_holds_the_condition(kind):
    mix, x, cond = mixer(kind, cond_dim=5, conditioning="conv_state"), tokens(), torch.randn(B, 5).double()
    expected = mix(x, cond)
    assert relative_error(mix(x, state=mix.initial_state(B, cond)), expected) < 1e-12
    first, state = mix(x[:, :2], cond, return_state=True)
    assert relative_error(torch.cat([first, mix(x[:, 2:], state=state)], 1), expected) < 1e-12


@pytest.mark.parametrize("order", orders())
@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_padding_changes_nothing_and_comes_out_as_zero(kind, options, order):
    mix, x, order = mixer(kind, **options), tokens(), orders()[order]
    cond = torch.randn(B, 5, dtype=torch.float64) if "cond_dim" in options else None
    padding = torch.arange(L) >= LENGTHS[:, None]
    x[padding] = float("nan")
    x.requires_grad_()
    y = mix(x, cond, order=order, lengths=LENGTHS)
    assert not y[padding].any()
    found = gradients(y, x, *mix.parameters())
    assert not found[0][padding].any()
    alone = [
        mix(x[i : i + 1, :n], None if cond is None else cond[i : i + 1], order=restricted(order, range(n)))
        for i, n in enumerate(LENGTHS.tolist())
    ]
    apart = torch.cat([torch.cat([a, a.new_zeros(1, L - a.shape[1], C)], 1) for a in alone])
    assert relative_error(y, apart) < 1e-12
    for got, expected in zip(found, gradients(apart, x, *mix.parameters()), strict=True):
        assert relative_error(got.nan_to_num(), expected.nan_to_num()) < 1e-10


@pytest.mark.parametrize("kind", SCANS)
@pytest.mark.parametrize("order", orders())
def test_padding_leaves_the_state_as_it_is(order, kind):
    mix, x, order, lengths = mixer(kind), tokens(), orders()[order], torch.tensor([9, 2, 0], dtype=torch.int32)
    _, before = mix(tokens().flip(0), return_state=True)
    y, last = mix(x, order=order, lengths=lengths, state=before, return_state=True)
    for i, n in enumerate(lengths.tolist()):
        state = type(before)(*(part[i : i + 1] for part in before))
        if n:
            own, state = mix(x[i : i + 1, :n], order=restricted(order, range(n)), state=state, return_state=True)
            assert relative_error(y[i : i + 1, :n], own) < 1e-12
        for part, expected in zip(last, state, strict=True):
            assert torch.allclose(part[i : i + 1], expected, atol=1e-12)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("order", orders())
@pytest.mark.parametrize(("kind", "options"), UNCONDITIONED)
def test_packed_documents_do_not_see_each_other(kind, options, order, padded):
    mix, x, order = mixer(kind, **options), tokens().requires_grad_(), orders()[order]
    seq_idx = torch.tensor([[0] * 5 + [1] + [4] * 5, [2] * 11, [0, 1, 2, 3, 4, 4, 4, 4, 9, 9, 9]])
    lengths = torch.tensor([8, 11, 9]) if padded else None
    y = mix(x, order=order, seq_idx=seq_idx, lengths=lengths)
    apart = torch.zeros_like(y)
    for b in range(B):
        for document in seq_idx[b].unique():
            keep = (seq_idx[b] == document).nonzero()[:, 0]
            keep = keep if lengths is None else keep[keep < lengths[b]]
            if len(keep):
                own = mix(x[b : b + 1, keep], order=restricted(order, keep))
                apart = apart.index_put((torch.tensor([b]), keep), own[0])
    assert relative_error(y, apart) < 1e-12
    wanted = (x, *mix.parameters())
    for got, expected in zip(gradients(y, *wanted), gradients(apart, *wanted), strict=True):
        assert relative_error(got, expected) < 1e-10


@pytest.mark.parametrize("kind", SCANS)
def test_the_state_after_packed_documents_is_that_of_the_last(kind):
    mix, x, seq_idx = mixer(kind), tokens(), torch.tensor([[0] * 9 + [1] * 2]).expand(B, -1)
    _, before = mix(tokens().flip(0), return_state=True)
    y, last = mix(x, seq_idx=seq_idx, state=before, return_state=True)
    assert relative_error(y[:, :9], mix(x[:, :9], state=before)) < 1e-12
    own, state = mix(x[:, 9:], return_state=True)
    assert relative_error(y[:, 9:], own) < 1e-12
    for part, expected in zip(last, state, strict=True):
        assert torch.allclose(part, expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_with_states_and_padding(kind):
    mix, x = mixer(kind, **CAUSAL[kind]), tokens()

    def call(x, lengths, state):
        return mix(x, lengths=lengths if kind in SCANS else None, state=state, return_state=True)

    state = mix.initial_state(B)
    y, _ = torch.compile(call, fullgraph=True, backend="eager")(x, LENGTHS, state)
    assert relative_error(y, call(x, LENGTHS, state)[0]) < 1e-12


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mixer(bidirectional=True)(tokens(), return_state=True), ConfigError, "one direction"),
        (lambda: mixer(bidirectional=True).initial_state(2), ConfigError, "one direction"),
        (
            lambda: mixer(bidirectional=True).step(tokens()[:, 0], mixer().initial_state(B)),
            ConfigError,
            "one direction",
        ),
        (lambda: mixer("gla", bidirectional=True).initial_state(2), ConfigError, "one direction"),
        (lambda: mixer("attention").initial_state(2), ConfigError, "causal=True"),
        (lambda: mixer("attention")(tokens(), return_state=True), ConfigError, "state: expected a causal mixer"),
        (
            lambda: mixer("attention", causal=True)(tokens(), return_state=True, lengths=LENGTHS),
            ConfigError,
            "neither lengths nor seq_idx",
        ),
        (
            lambda: mixer("mamba2", cond_dim=5, conditioning="conv_state")(
                tokens(), torch.randn(B, 5).double(), seq_idx=torch.zeros(B, L, dtype=torch.int64)
            ),
            ConfigError,
            "seq_idx: expected conditioning='none'",
        ),
        *(
            (
                lambda k=kind: mixer(k)(tokens(), torch.randn(B, 5)),
                ShapeError,
                "cond: expected None, as .*Mixer takes none",
            )
            for kind in ("gla", "attention")
        ),
        (lambda: mixer("mamba2")(tokens(), torch.randn(B, 5)), ShapeError, "cond: expected None.*conditioning='none'"),
        (lambda: mixer("gla").step(tokens()[:, 0], None), ShapeError, "GLAState, got None"),
        (
            lambda: mixer("gla")(tokens(), state=mixer().initial_state(B)),
            ShapeError,
            "expected a GLAState, got MambaState",
        ),
        (
            lambda: mixer("mamba2")(tokens(), state=mixer().initial_state(B)),
            ShapeError,
            r"state.conv: expected \(B, d_conv - 1, E \+ 2 N\)",
        ),
        (
            lambda: mixer("attention", causal=True).step(
                tokens()[:, 0], mixer("attention", causal=True).initial_state(2)
            ),
            ShapeError,
            r"state.k: expected \(B, L, C\)",
        ),
        (lambda: mixer().step(tokens()[:, 0], None), ShapeError, "initial_state"),
        (lambda: mixer().step(tokens(), mixer().initial_state(B)), ShapeError, r"x: expected \(B, C\)"),
        (lambda: mixer()(tokens(), state=mixer().initial_state(2)), ShapeError, "state.conv: expected"),
        (lambda: mixer()(tokens(), state=(1, 2)), ShapeError, "MambaState, got tuple"),
        (lambda: mixer()(tokens(), torch.randn(B, 5)), ShapeError, "cond: expected None.*conditioning='none'"),
        (
            lambda: mixer(cond_dim=5, conditioning="conv_state")(
                tokens(), torch.randn(B, 5).double(), state=mixer().initial_state(B)
            ),
            ShapeError,
            "the state holds it",
        ),
        (lambda: mixer(cond_dim=5, conditioning="conv_state").initial_state(B), ShapeError, "pass it"),
        (
            lambda: mixer(cond_dim=5, conditioning="conv_state")(
                tokens(), torch.randn(B, 5).double(), seq_idx=torch.zeros(B, L, dtype=torch.int64)
            ),
            ConfigError,
            "seq_idx: expected conditioning='none'",
        ),
        (lambda: mixer()(tokens(), lengths=torch.tensor([3, 12, 1])), ShapeError, "lengths: expected 0 to L = 11"),
        (lambda: mixer()(tokens(), lengths=torch.tensor([3, 2])), ShapeError, r"lengths: expected \(B,\)"),
        (lambda: mixer()(tokens(), lengths=torch.ones(B)), ShapeError, "lengths: .*int64"),
        (lambda: mixer()(tokens(), lengths=[3, 2, 1]), ShapeError, "lengths: .*got list"),
        (lambda: mixer()(tokens(), lengths=LENGTHS.to("meta")), ShapeError, "lengths: .*meta"),
        (lambda: mixer()(tokens(), seq_idx=-torch.arange(L).expand(B, L)), ShapeError, "do not decrease"),
        (lambda: mixer()(tokens(), seq_idx=torch.arange(L)), ShapeError, r"seq_idx: expected \(B, L\)"),
    ],
)
def test_what_has_no_meaning_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
