"""Scores of made examples beside real ones, in whatever features they are compared in.

`python -m wavemamba.evaluate` scores in Inception's features, by torch-fidelity, whose numbers papers quote; these
functions take any features, such as those of a small classifier or the pixels themselves.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wavemamba.checks import expect_count, expect_floating, expect_shape
from wavemamba.errors import DataError

__all__ = ["PrecisionRecall", "frechet_distance", "nearest_distances", "precision_recall"]

ROWS_AT_ONCE = 256
PAIRS_AT_ONCE = 4096


class PrecisionRecall(NamedTuple):
    """How much of the samples is real, and how much of what is real is sampled."""

    precision: float
    """Share of the samples that lie among the reference, in [0, 1]."""
    recall: float
    """Share of the reference that lies among the samples, in [0, 1]."""


def frechet_distance(samples: Tensor, reference: Tensor) -> float:
    """Fréchet distance of Gaussians fitted to two sets of features.

    `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`, with means m and unbiased covariances S, in float64. No covariance is
    formed: with `S = R^T R` from the centred features, the last trace is the sum of the singular values of `R1 R2^T`.

    Args:
        samples: (n, d), floating, n >= 2. With n <= d its covariance has no full rank, and the distance says little.
        reference: (m, d), floating, m >= 2.

    Returns:
        A number >= 0 up to rounding; it falls with n, so that only distances of equal n and m are to be compared.

    Raises:
        ShapeError: features that are no floating matrices of one width.
        DataError: fewer than two rows, or numbers that are not finite.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017, equation 6.
    """
    samples, reference = _features(samples, reference, least=2)
    means, roots = [], []
    for features in (samples, reference):
        means.append(features.mean(0))
        centred = (features - means[-1]) / (len(features) - 1) ** 0.5
        roots.append(torch.linalg.qr(centred, mode="r").R)
    first, second = roots
    spread = first.square().sum() + second.square().sum() - 2 * torch.linalg.matrix_norm(first @ second.mT, "nuc")
    return float((means[0] - means[1]).square().sum() + spread)


def precision_recall(samples: Tensor, reference: Tensor, *, neighbours: int = 3) -> PrecisionRecall:
    """Precision and recall of samples against a reference.

    A feature lies among a set where it is no farther from one of the set's members than that member is from its k-th
    nearest other member. The time grows with the product of the numbers of rows, the memory with their sum.

    Args:
        samples: (n, d), floating, n > k.
        reference: (m, d), floating, m > k.
        neighbours: k >= 1.

    Raises:
        ShapeError: features that are no floating matrices of one width.
        DataError: too few rows, or numbers that are not finite.
        ConfigError: k is no whole number >= 1.

    Source: Kynkäänniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", 2019.
    """
    k = expect_count("neighbours", neighbours, 1)
    samples, reference = _features(samples, reference, least=k + 1)
    return PrecisionRecall(_share_among(samples, reference, k), _share_among(reference, samples, k))


def nearest_distances(features: Tensor, among: Tensor) -> Tensor:
    """How far each row is from the nearest row of another set: (n,) float64, Euclidean.

    Samples that lie much nearer to the training examples than held-out examples do are memorised.

    Args:
        features: (n, d), floating, n >= 1.
        among: (m, d), floating, m >= 1.

    Raises:
        ShapeError: features that are no floating matrices of one width.
        DataError: no rows, or numbers that are not finite.
    """
    features, among = _features(features, among, least=1)
    # Matrix products find the nearest row, many times faster than differences, which then say exactly how far it is.
    nearest = [torch.cdist(rows, among, compute_mode="use_mm_for_euclid_dist").argmin(1) for rows in _some(features)]
    return (features - among[torch.cat(nearest)]).norm(dim=1)


def _share_among(features: Tensor, members: Tensor, k: int) -> float:
    radii = torch.cat([_distance_to_kth(rows, members, k) for rows in _some(members)])
    return torch.cat([_within_one(rows, members, radii) for rows in _some(features)]).double().mean().item()


def _distance_to_kth(rows: Tensor, members: Tensor, k: int) -> Tensor:
    """How far each of some members is from its k-th nearest other one."""
    squares, _ = _squared_distances(rows, members)
    # The nearest member of a member is itself; some more than needed, as rounding may exchange neighbours.
    nearest = squares.topk(min(2 * k + 8, len(members)), largest=False).indices
    exact = torch.stack([(rows - members[column]).norm(dim=1) for column in nearest.T], dim=1)
    return exact.kthvalue(k + 1, 1).values


def _within_one(rows: Tensor, members: Tensor, radii: Tensor) -> Tensor:
    """Which rows are no farther from one of the members than its radius."""
    squares, rounding = _squared_distances(rows, members)
    beyond = squares - radii.square()
    within = (beyond < -rounding).any(1)
    unsure = ~(within.unsqueeze(1) | (beyond > rounding))  # also where the square is too large for a number
    row, member = unsure.nonzero(as_tuple=True)
    for some, of in zip(row.split(PAIRS_AT_ONCE), member.split(PAIRS_AT_ONCE), strict=True):
        within[some[(rows[some] - members[of]).norm(dim=1) <= radii[of]]] = True
    return within


def _squared_distances(rows: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances (n, m) by a matrix product, many times faster than differences, and a bound of their error."""
    lengths = rows.square().sum(1, keepdim=True) + members.square().sum(1)
    rounding = 4 * (rows.shape[1] + 4) * torch.finfo(rows.dtype).eps * lengths
    return torch.addmm(lengths, rows, members.T, alpha=-2), rounding


def _some(features: Tensor) -> tuple[Tensor, ...]:
    return features.split(ROWS_AT_ONCE)


def _features(samples: Tensor, reference: Tensor, *, least: int) -> tuple[Tensor, Tensor]:
    """Both in float64 on the CPU, once they fit each other."""
    expect_shape("samples", samples, (None, None), "(n, d)", "flatten pictures with x.flatten(1)")
    expect_shape("reference", reference, (None, samples.shape[1]), "(m, d)", "take both from the same features")
    for name, features in (("samples", samples), ("reference", reference)):
        expect_floating(name, features)
        if len(features) < least:
            raise DataError(f"{name}: expected at least {least} rows, got {len(features)}; pass more examples")
        if lost := int((~features.isfinite().all(1)).sum()):
            raise DataError(f"{name}: expected finite numbers, got {lost} rows of {len(features)} with others")
    return samples.detach().to("cpu", torch.float64), reference.detach().to("cpu", torch.float64)
