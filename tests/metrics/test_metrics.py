"""Fréchet distance, precision, recall and nearest distances: by definition, and as torch-fidelity has them."""

import pytest
import torch

from wavemamba.errors import ConfigError, DataError, ShapeError
from wavemamba.metrics import frechet_distance, nearest_distances, precision_recall


def draw(n, d, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mixed = (
        torch.randn(n, d, generator=generator, dtype=torch.float64) @ torch.randn(d, d, generator=generator).double()
    )
    return scale * mixed + shift


@pytest.mark.parametrize(("n", "m", "d"), [(50, 70, 8), (500, 300, 32), (12, 9, 5)])
def test_distance_is_that_of_torch_fidelity(n, m, d):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    a, b = draw(n, d, 0), draw(m, d, 1, 1.3, 0.2)
    pair = [fid_features_to_statistics(features) for features in (a, b)]
    expected = fid_statistics_to_metric(*pair, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_distance_of_known_gaussians():
    x = draw(400, 6, 0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x + 2, x) == pytest.approx(6 * 4, rel=1e-9)  # the means alone differ
    doubled = x.var(0).sum().item()  # S and 4 S: tr(S + 4 S - 2 * 2 S)
    assert frechet_distance(x.mean(0) + 2 * (x - x.mean(0)), x) == pytest.approx(doubled, rel=1e-9)


def test_distance_of_fewer_rows_than_features_needs_no_full_rank():
    few, many = draw(5, 20, 0), draw(100, 20, 0)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(few, many) > 0


@pytest.mark.parametrize("neighbours", [1, 3])
@pytest.mark.parametrize(("n", "m"), [(300, 600), (90, 40)])
def test_precision_and_recall_are_those_of_torch_fidelity(n, m, neighbours):
    from torch_fidelity.metric_prc import prc_features_to_metric

    a, b = draw(n, 4, 0, 0.7).float(), draw(m, 4, 0, 1.0, 0.5).float()
    expected = prc_features_to_metric(a, b, prc_neighborhood=neighbours, verbose=False, save_cpu_ram=False)
    found = precision_recall(a, b, neighbours=neighbours)
    assert found.precision == pytest.approx(expected["precision"], abs=1e-6)
    assert found.recall == pytest.approx(expected["recall"], abs=1e-6)


def test_precision_and_recall_of_known_sets():
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))
    assert precision_recall(grid, grid) == (1.0, 1.0)
    assert precision_recall(grid + 100, grid) == (0.0, 0.0)
    collapsed = grid[:1] + 1e-3 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    assert precision_recall(collapsed, grid, neighbours=1).precision == 1.0
    assert precision_recall(collapsed, grid, neighbours=1).recall <= 1 / 25


@pytest.mark.parametrize("shift", [0.0, 1e6])  # far from zero, matrix products say little of distances
@pytest.mark.parametrize("kinds", [400, 12])  # few kinds: equal rows, and distances that tie
def test_precision_and_recall_are_those_of_all_pairs(shift, kinds):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(kinds, (700,), generator=generator)
    a, b = (draw(kinds, 5, 0).round() + shift)[drawn].split([300, 400])
    b = torch.where(torch.rand(400, 1, generator=generator) < 0.5, b + 1, b)
    radii = torch.cdist(b, b, compute_mode="donot_use_mm_for_euclid_dist").kthvalue(4, 1).values
    among = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") <= radii
    assert precision_recall(a, b).precision == pytest.approx(among.any(1).double().mean().item())


@pytest.mark.parametrize("rows", [1, 300])
def test_nearest_distances_are_those_of_all_pairs(rows):
    a, b = draw(rows, 3, 0), draw(7, 3, 1)
    expected = (a[:, None] - b).norm(dim=-1).amin(1)
    torch.testing.assert_close(nearest_distances(a, b), expected)
    assert not nearest_distances(b, b).any()


def test_device_and_dtype_of_the_process_change_nothing():
    a, b = draw(20, 3, 0), draw(30, 3, 1)
    expected = frechet_distance(a, b), precision_recall(a, b)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float16)
        assert (frechet_distance(a, b), precision_recall(a, b)) == expected
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("score", [frechet_distance, precision_recall, nearest_distances])
def test_bad_features_are_named(score):
    good = draw(10, 3, 0)
    with pytest.raises(ShapeError, match=r"samples: expected \(n, d\)"):
        score(good[None], good)
    with pytest.raises(ShapeError, match="reference: expected"):
        score(good, good[:, :2])
    with pytest.raises(ShapeError, match="samples: expected a floating dtype"):
        score(good.long(), good)
    with pytest.raises(ShapeError, match="reference: expected a tensor"):
        score(good, good.numpy())
    with pytest.raises(DataError, match="reference: expected at least"):
        score(good, good[:0])
    broken = good.clone()
    broken[2, 1] = torch.nan
    with pytest.raises(DataError, match="samples: expected finite numbers, got 1 rows of 10"):
        score(broken, good)


@pytest.mark.parametrize("neighbours", [0, 1.5, True, "3"])
def test_neighbours_are_a_whole_number(neighbours):
    with pytest.raises(ConfigError, match="neighbours: expected a whole number"):
        precision_recall(draw(10, 3, 0), draw(10, 3, 1), neighbours=neighbours)
