import pytest
import torch
from support import relative_error

from wavemamba import ConfigError
from wavemamba.layers import AttentionMixer


def randomised(mixer):
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return mixer.double()


@pytest.mark.parametrize("causal", [False, True])
def test_mixer_is_its_equation(causal):
    """Queries and keys as complex numbers, turned by their places: a score depends on how far apart they are."""
    mixer = randomised(AttentionMixer(12, num_heads=2, causal=causal))
    tokens = torch.randn(2, 9, 12, dtype=torch.float64)
    q, k, v = ((tokens @ mixer.in_proj.weight.T).unflatten(-1, (3, 2, 6))).unbind(2)
    q, k = (torch.view_as_complex(t.unflatten(-1, (3, 2)).contiguous()) for t in (q, k))
    frequencies = 10000.0 ** (-torch.arange(3, dtype=torch.float64) / 3)
    scores = torch.empty(2, 2, 9, 9, dtype=torch.float64)
    for i in range(9):
        for j in range(9):
            turn = torch.polar(torch.ones(3).double(), (i - j) * frequencies)
            scores[:, :, i, j] = (q[:, i] * k[:, j].conj() * turn).sum(-1).real / 6**0.5
    if causal:
        scores = scores.masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -torch.inf)
    expected = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2) @ mixer.out_proj.weight.T
    assert relative_error(mixer(tokens), expected) < 1e-12


@pytest.mark.parametrize("causal", [False, True])
def test_the_order_matters(causal):
    mixer, tokens = randomised(AttentionMixer(8, causal=causal)), torch.randn(1, 9, 8, dtype=torch.float64)
    assert relative_error(mixer(tokens, order=torch.randperm(9)), mixer(tokens)) > 1e-2


def test_a_causal_step_sees_nothing_that_comes_after_it_in_the_order():
    mixer, tokens = randomised(AttentionMixer(8, causal=True)), torch.randn(1, 9, 8, dtype=torch.float64)
    order = torch.randperm(9)
    changed = tokens.clone()
    changed[:, order[5:]] += 1
    y, again = mixer(tokens, order=order), mixer(changed, order=order)
    assert relative_error(again[:, order[:5]], y[:, order[:5]]) < 1e-12
    assert (again - y)[:, order[5:]].abs().amin(dim=(0, 1)).min() > 0


@pytest.mark.parametrize(("dim", "heads"), [(64, 8), (48, 8), (6, 3), (2, 1), (10, 5), (34, 1)])
def test_the_heads_fit_any_even_width(dim, heads):
    mixer = AttentionMixer(dim)
    assert mixer.num_heads == heads
    assert mixer(torch.randn(1, 3, dim)).shape == (1, 3, dim)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 7}, "dim: expected an even width"),
        ({"dim": 0}, "dim: expected an int >= 1"),
        ({"dim": 12, "num_heads": 5}, "num_heads: expected a divisor"),
        ({"dim": 12, "num_heads": 4}, "num_heads: expected heads of an even width"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        AttentionMixer(**options)


def test_print_says_how_it_was_built():
    assert "8, num_heads=4, causal=True" in repr(AttentionMixer(8, causal=True))
