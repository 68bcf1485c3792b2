"""Features of Inception that the scores of generated images are made from, by torch-fidelity."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wavemamba.errors import BackendUnavailable, CheckpointError

Features = dict[str, Tensor]
Statistics = dict[str, NDArray[np.float64]]
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")


class Inception(nn.Module):
    """torch-fidelity's InceptionV3 with the weights of the original FID: pooled and spatial features, and logits.

    Args:
        weights: torch-fidelity's weight file; None: downloaded by it.
    """

    description = "torch-fidelity inception-v3-compat; 8-bit images, resized to 299 x 299 as TensorFlow 1 does"

    def __init__(self, weights: str | None) -> None:
        super().__init__()
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise BackendUnavailable(
                f"Inception: expected torch-fidelity to be installed ({error}); pip install 'wavemamba[train]'"
            ) from error
        if weights is not None:
            try:  # torch-fidelity would unpickle anything: what passes here holds tensors only
                torch.load(weights, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, pickle.UnpicklingError) as error:
                raise CheckpointError(f"{weights}: expected Inception weights of torch-fidelity ({error})") from error
        names = ["2048", "logits_unbiased"]
        try:
            self.net = FeatureExtractorInceptionV3("inception-v3-compat", names, feature_extractor_weights_path=weights)
        except (OSError, RuntimeError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"{weights or 'download'}: expected Inception weights of torch-fidelity ({error}); without a network, "
                "give its weight file with --inception"
            ) from error
        self.net.Mixed_6d.branch1x1.register_forward_hook(self._keep)
        self._spatial = torch.empty(0)

    def _keep(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        # Channels last, the order in which published statistics files (mu_s, sigma_s) hold them.
        self._spatial = output[:, :7].permute(0, 2, 3, 1).flatten(1)

    def forward(self, images: Tensor) -> Features:
        """(n, 3, h, w) uint8 to `pool` (n, 2048), `spatial` (n, 2023) and `logits` (n, 1008)."""
        pool, logits = self.net(images)
        return {"pool": pool, "spatial": self._spatial, "logits": logits}


def statistics(found: Features) -> Statistics:
    """Mean and covariance of pooled and spatial features, under the names of the ADM evaluation's files."""
    from torch_fidelity.metric_fid import fid_features_to_statistics

    pool, spatial = (fid_features_to_statistics(found[name].double()) for name in ("pool", "spatial"))
    return {"mu": pool["mu"], "sigma": pool["sigma"], "mu_s": spatial["mu"], "sigma_s": spatial["sigma"]}


def fidelity_scores(found: Features, own: Statistics, reference: Statistics, pool: Tensor | None) -> dict[str, Any]:
    """FID, sFID and inception score, and precision and recall where there are reference features.

    Args:
        found: features of the samples.
        own: their statistics.
        reference: statistics of the reference, of the same shapes.
        pool: (n, d), pooled features of reference images.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    def frechet(mean: str, cov: str) -> float:
        pair = [{"mu": s[mean], "sigma": s[cov]} for s in (own, reference)]
        return float(fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID])

    scores: dict[str, Any] = {"fid": frechet("mu", "sigma"), "sfid": frechet("mu_s", "sigma_s")}
    scores |= isc_features_to_metric(found["logits"], splits=10, shuffle=True, rng_seed=2020)
    if pool is not None:
        k, n = 3, 10_000
        own_pool, pool = found["pool"][:n], pool[:n]
        scores |= prc_features_to_metric(own_pool, pool, prc_neighborhood=k, verbose=False, save_cpu_ram=True)
        scores.pop("f_score")
        scores["precision_recall"] = {"neighbours": k, "samples": len(own_pool), "reference": len(pool)}
    return scores


def too_few(counts: dict[str, int], features: Features) -> list[str]:
    """A sentence for each side with fewer images than features, whose covariance has then no full rank.

    Args:
        counts: images of each side.
        features: of one of them.
    """
    wanted = {"fid": features["pool"].shape[1], "sfid": features["spatial"].shape[1]}
    return [
        f"{name}: expected more than {width} images a side, as many as it has features, got {count} {side}; the number "
        "says little, and is not to be compared with others"
        for name, width in wanted.items()
        for side, count in counts.items()
        if count <= width
    ]
