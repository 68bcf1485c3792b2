"""Run projects that were written against mamba-ssm on a CPU, unchanged, through `wavemamba.compat`.

    python benchmarks/compat_projects.py --mambavision CHECKOUT --vm-unet CHECKOUT ...

Nothing is fetched: a project whose checkout is not given, or whose other requirements are not installed, is skipped
with the reason. Each model is built from the project's own files, runs forward and backward in float32, and is
compared with the same model on the plain reference loops; a time is the best of three, the loops' is measured once.
Where all five ran, the result is written to `benchmarks/results/cpu-compat-projects.json`.

Beside timm and einops, LightM-UNet needs monai; PointMamba easydict, termcolor and addict; Caduceus transformers 4,
whose `tie_weights` has the arguments that its own has. PointMamba also needs `knn_cuda`, `pointnet2_ops` and a
Chamfer distance, CUDA packages too: stand-ins of a few lines here take their place.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import machine
from torch import Tensor, nn

import wavemamba.compat
from wavemamba.ops import use_backend

RESULT = Path(__file__).parent / "results" / "cpu-compat-projects.json"
Model = tuple[nn.Module, tuple[Tensor, ...]]


def mambavision(path: Path) -> Model:
    """MambaVision-T, two 224 x 224 images."""
    sys.path.insert(0, str(path))
    module = importlib.import_module("mambavision.models.mamba_vision")
    return module.mamba_vision_T(drop_path_rate=0.0), (torch.randn(2, 3, 224, 224),)


def vm_unet(path: Path) -> Model:
    """VM-UNet, one 64 x 64 image, two classes."""
    sys.path.insert(0, str(path))
    module = importlib.import_module("models.vmunet.vmamba")
    model = module.VSSM(num_classes=2, depths=[2, 2, 2, 2], depths_decoder=[2, 2, 2, 1], drop_path_rate=0.0)
    return model, (torch.randn(1, 3, 64, 64),)


def lightm_unet(path: Path) -> Model:
    """LightM-UNet, one 64 x 64 image."""
    file = path / "lightm-unet" / "nnunetv2" / "nets" / "LightMUNet.py"
    spec = importlib.util.spec_from_file_location("LightMUNet", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.LightMUNet(spatial_dims=2, init_filters=32, in_channels=1, out_channels=2)
    return model, (torch.randn(1, 1, 64, 64),)


def pointmamba(path: Path) -> Model:
    """PointMamba, four clouds of 1,024 points, its settings for ScanObjectNN."""
    sys.path.insert(0, str(path))
    sys.modules["knn_cuda"] = types.SimpleNamespace(KNN=Neighbours)
    operations = types.SimpleNamespace(furthest_point_sample=farthest_points, gather_operation=gather)
    sys.modules["pointnet2_ops"] = types.SimpleNamespace(pointnet2_utils=operations)
    distances = types.SimpleNamespace(ChamferDistanceL1=nn.Identity, ChamferDistanceL2=nn.Identity)
    sys.modules["extensions.chamfer_dist"] = distances
    settings = types.SimpleNamespace(
        NAME="PointMambaScan", trans_dim=384, depth=12, cls_dim=15, num_heads=6, group_size=32, num_group=64,
        encoder_dims=384, rms_norm=False, drop_path=0.0, drop_out=0.0, drop_out_in_block=0.0, drop_path_rate=0.0,
        use_cls_token=False, max_head=False, avg_head=True,
    )  # fmt: skip
    module = importlib.import_module("models.point_mamba_scan")
    return module.PointMambaScan(settings), (torch.rand(4, 1024, 3),)


def caduceus(path: Path) -> Model:
    """Caduceus with reverse-complement symmetry, two sequences of 512 bases."""
    sys.path.insert(0, str(path))
    settings = importlib.import_module("caduceus.configuration_caduceus").CaduceusConfig(
        d_model=128, n_layer=4, vocab_size=12, rcps=True, pad_vocab_size_multiple=8,
        complement_map={i: i for i in range(16)},
    )  # fmt: skip
    module = importlib.import_module("caduceus.modeling_caduceus")
    return module.CaduceusForMaskedLM(settings), (torch.randint(7, 11, (2, 512)),)


PROJECTS: dict[str, Callable[[Path], Model]] = {
    "mambavision": mambavision,
    "vm-unet": vm_unet,
    "lightm-unet": lightm_unet,
    "pointmamba": pointmamba,
    "caduceus": caduceus,
}


class Neighbours:
    """The k nearest points of each query, as `knn_cuda.KNN` gives them."""

    def __init__(self, k: int, transpose_mode: bool) -> None:
        self.k = k

    def __call__(self, points: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Points (B, N, 3), queries (B, M, 3) to distances and indices (B, M, k)."""
        found = torch.cdist(queries, points).topk(self.k, largest=False)
        return found.values, found.indices


def farthest_points(points: Tensor, count: int) -> Tensor:
    """Indices (B, count) of points that lie far from each other."""
    chosen = [torch.zeros(len(points), dtype=torch.long)]
    nearest = torch.full(points.shape[:2], torch.inf)
    for _ in range(count - 1):
        last = points.gather(1, chosen[-1][:, None, None].expand(-1, 1, 3))
        nearest = torch.minimum(nearest, (points - last).square().sum(-1))
        chosen.append(nearest.argmax(1))
    return torch.stack(chosen, dim=1)


def gather(features: Tensor, index: Tensor) -> Tensor:
    """Columns of (B, C, N) at (B, M)."""
    return features.gather(2, index.unsqueeze(1).expand(-1, features.shape[1], -1))


@contextmanager
def on_reference_loops(model: nn.Module) -> Iterator[None]:
    """Run mamba-ssm's functions as plain loops, also where a project's module holds them by name."""
    from wavemamba.compat.mamba_ssm.ops import selective_scan_interface as interface

    modules = (sys.modules.get(type(part).__module__) for part in model.modules())
    holders = {module for module in modules if module is not None}
    fast = interface.selective_scan_fn

    def replace(old: Any, new: Any) -> None:
        for holder in holders:
            if getattr(holder, "selective_scan_fn", None) is old:
                holder.selective_scan_fn = new
        for part in model.modules():
            if getattr(part, "selective_scan", None) is old:
                part.selective_scan = new

    replace(fast, interface.selective_scan_ref)
    try:
        with use_backend("reference"):
            yield
    finally:
        replace(interface.selective_scan_ref, fast)


def step(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[float, list[Tensor]]:
    """One forward and backward pass: seconds, and the output with every gradient."""
    torch.manual_seed(0)
    model.zero_grad()
    start = time.perf_counter()
    out = model(*inputs)
    out = out if isinstance(out, Tensor) else out.logits
    out.square().mean().backward()
    seconds = time.perf_counter() - start
    return seconds, [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Relative L2 error of all tensors taken as one vector: one of rounding alone counts as little."""
    differences = torch.stack([(a - b).norm() for a, b in zip(found, expected, strict=True)])
    return float(differences.norm() / torch.stack([b.norm() for b in expected]).norm())


def measure(name: str, path: Path) -> dict[str, Any]:
    """Build a project's model and compare both ways to run it."""
    torch.manual_seed(0)
    before, own = set(sys.modules), list(sys.path)
    try:
        model, inputs = PROJECTS[name](path)
        step(model, inputs)  # compiles the kernels
        timed = [step(model, inputs) for _ in range(3)]
        with on_reference_loops(model):
            loops, expected = step(model, inputs)
        seconds = min(seconds for seconds, _ in timed)
        return {
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": seconds,
            "seconds_on_loops": loops,
            "times_faster": loops / seconds,
            "output_error": relative_error(timed[0][1][:1], expected[:1]),
            "gradient_error": relative_error(timed[0][1][1:], expected[1:]),
        }
    finally:
        sys.path[:] = own
        for module in set(sys.modules) - before:
            if module.partition(".")[0] in ("models", "utils", "extensions", "mambavision", "caduceus"):
                del sys.modules[module]


def main() -> None:
    """Measure what was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in PROJECTS:
        parser.add_argument(f"--{name}", type=Path, help="a checkout of its repository")
    arguments = vars(parser.parse_args())
    warnings.simplefilter("ignore")
    wavemamba.compat.install()
    rows = {}
    for name in PROJECTS:
        path = arguments[name.replace("-", "_")]
        if path is None:
            print(f"{name}: skipped, no checkout was given (--{name} PATH)")
            continue
        try:
            rows[name] = measure(name, path)
        except ImportError as error:
            print(f"{name}: skipped, {str(error).splitlines()[0]}")
            continue
        row = rows[name]
        times = (
            f"{row['seconds']:.2f} s, on the loops {row['seconds_on_loops']:.1f} s ({row['times_faster']:.1f} times)"
        )
        print(f"{name}: {times}; errors: output {row['output_error']:.1e}, gradients {row['gradient_error']:.1e}")
    if rows.keys() == PROJECTS.keys():
        RESULT.write_text(json.dumps({"machine": machine(), "projects": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
