"""A small model of every family, in its variants."""

import torch

from wavemamba import create_model

CASES = {
    "dimsum": ("dimsum_tiny", {"attention_every": 2, "fusion_heads": 2, "attention_heads": 2}),
    **{
        f"dimsum-{name}": ("dimsum_tiny", {"attention_every": 2, "attention_heads": 2, **options})
        for name, options in {
            "dct": {
                "fusion_heads": 2,
                "transform": "dct",
                "layout": "interleaved",
                "band_scaling": "orthonormal",
                "frequency_scan": "jpeg",
                "positions": "sincos",
            },
            "einfft": {"fusion_heads": 2, "frequency": "einfft", "positions": "rotary", "spatial_scan": "hilbert"},
            "raw": {"frequency": "none", "mlp": "none", "positions": "conditional", "conditioning": "conv_state"},
            "window": {
                "frequency": "none",
                "spatial_scan": "window(window=4)",
                "spatial_alternation": "transpose",
                "final_norm": True,
            },
            "wave": {
                "spatial": "none",
                "frequency_scan": "raster",
                "frequency_alternation": "transpose_reverse",
                "mlp_domain": "frequency",
            },
        }.items()
    },
    "dimsum-attention-in-windows": (
        "dimsum_s2_window",
        {"attention_every": 2, "fusion_heads": 2, "attention_heads": 2, "attention_window": 3},
    ),
    "dimsum-linear-attention": ("dimsum_s2_linear", {"attention_every": 2, "fusion_heads": 2, "attention_heads": 2}),
    "dimsum-without-attention": ("wavemamba_diffusion_s2", {}),
    **{
        f"dimsum-{mixer}": (
            "dimsum_tiny",
            {"mixer": mixer, "attention_every": 2, "fusion_heads": 2, "attention_heads": 2, "spatial_scan": "hilbert"},
        )
        for mixer in ("mamba2", "gla", "attention")
    },
    "dit": ("dit_s2", {"num_heads": 2}),
    "sit": ("sit_s4", {"num_heads": 2}),
    "diffussm": ("diffussm_s", {}),
    "diffussm-quarters": ("diffussm_l", {"shorten": 4, "scan": "hilbert", "d_state": 8}),
    "zigma": ("zigma_s2", {"drop_path_rate": 0.0}),
    "zigma-text": ("zigma_b1", {"context_dim": 12, "num_classes": 0, "scan": "hilbert", "positions": "sincos"}),
    "zigma-both-ways": ("zigma_s1", {"bidirectional": True, "scan": "raster", "class_dropout": 0.1}),
}
ONE_OF_EACH = tuple({name.split("_")[0]: case for case, (name, _) in reversed(CASES.items())}.values())
"""The first variant of every family."""


def build(case, depth=2):
    """A model with nothing left at zero, so that every path matters."""
    torch.manual_seed(0)
    name, options = CASES[case]
    model = create_model(name, **{"img_size": 8, "num_classes": 5, "depth": depth, "dim": 32, **options})
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def inputs(model, batch=2, size=(8, 8)):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, model.in_chans, *size, generator=generator)
    t = torch.rand(batch, generator=generator)
    if model.condition.kind == "tokens":
        return x, t, torch.randn(batch, 3, model.condition.width, generator=generator)
    return x, t, torch.randint(0, model.num_classes, (batch,), generator=generator)
