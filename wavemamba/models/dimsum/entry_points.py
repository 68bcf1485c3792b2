"""The names of the DiMSUM family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wavemamba.models.family import EntryPoint, Family, Published

if TYPE_CHECKING:
    from wavemamba.models.dimsum.model import DiMSUM


def _load() -> type[DiMSUM]:
    from wavemamba.models.dimsum.model import DiMSUM

    return DiMSUM


_SIZES = {"s2": {"dim": 384, "depth": 12}, "b2": {"dim": 768, "depth": 12}, "l2": {"dim": 1024, "depth": 16}}
_LINEAR = {
    "window": ("window", "attention in windows, shifted by turns: a cost linear in the tokens"),
    "linear": ("linear_attention", "attention without softmax: a cost linear in the tokens"),
}
# What benchmarks/convergence found better than the paper's choices: a linear layer joins the branches, and two blocks
# more stand in the transformer's place, for as many parameters. Without attention the cost is linear in the tokens.
_OURS = {"fusion": "linear", "attention_every": 0}
_DEEPER = {"s2": {"depth": 14}, "b2": {"depth": 14}, "l2": {"depth": 18}}

FAMILY = Family(
    "dimsum",
    _load,
    {
        "dimsum_tiny": EntryPoint(
            "4 blocks of width 128, patch 2: for tests and small images.",
            {"dim": 128, "depth": 4, "attention_every": 2},
        ),
        "dimsum_s2": EntryPoint("12 blocks of width 384, patch 2.", _SIZES["s2"]),
        "dimsum_b2": EntryPoint("12 blocks of width 768, patch 2.", _SIZES["b2"]),
        "dimsum_l2": EntryPoint(
            "16 blocks of width 1024, patch 2: the published model.",
            _SIZES["l2"],
            Published("haopt/dimsum-L2-imagenet256", "pytorch_model.bin"),
        ),
        "dimsum_l4": EntryPoint("16 blocks of width 1024, patch 4.", {"dim": 1024, "depth": 16, "patch_size": 4}),
        "dimsum_l2_d20": EntryPoint('20 blocks of width 1024, patch 2 ("L/2-v1").', {"dim": 1024, "depth": 20}),
        "dimsum_l4_d20": EntryPoint(
            '20 blocks of width 1024, patch 4 ("L/4-v1").', {"dim": 1024, "depth": 20, "patch_size": 4}
        ),
        "dimsum_xl2": EntryPoint("24 blocks of width 1152, patch 2.", {"dim": 1152, "depth": 24}),
        **{
            f"dimsum_{size}_{name}": EntryPoint(
                f"dimsum_{size} with {words}.", {**options, "fusion": kind, "attention": kind}
            )
            for name, (kind, words) in _LINEAR.items()
            for size, options in _SIZES.items()
        },
        **{
            f"wavemamba_diffusion_{size}": EntryPoint(
                f"dimsum_{size} without attention: {_DEEPER[size]['depth']} blocks, fused by a linear layer.",
                {**options, **_DEEPER[size], **_OURS},
            )
            for size, options in _SIZES.items()
        },
    },
)
