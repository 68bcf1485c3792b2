"""Pictures beside torchvision's, weights beside safetensors' own functions, averages beside timm's and torch's."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from loader import LEAST_PSNR, psnr, torchvision_batches, torchvision_folder, wavemamba_batches, write_pictures
from torch import Tensor, nn

import wavemamba
from beside.contest import Contest, Side, normal
from wavemamba.data import ImageFolder, PictureView
from wavemamba.training.averages import Averages

PICTURES = 32
MODELS = [("dimsum_s2", 1), ("dimsum_b2", 4), ("dimsum_l2", 8)]


@functools.cache
def _folder() -> Path:
    """A folder of pictures that lasts as long as the process."""
    kept = tempfile.TemporaryDirectory()
    _kept.append(kept)
    write_pictures(Path(kept.name), PICTURES)
    return Path(kept.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


def pictures(way: str, size: int) -> tuple[Side, Side]:
    """An epoch in batches of 8, without workers."""
    folder = str(_folder())
    ours = ImageFolder(folder, PictureView(size=size))
    exact = ImageFolder(folder, PictureView(size=size, reduce=float("inf")))
    least = min(psnr(ours.example(i)[0], exact.example(i)[0]) for i in range(len(ours)))
    if least < LEAST_PSNR:
        raise SystemExit(f"expected {LEAST_PSNR} dB beside the bicubic in one step, got {least:.1f}; not timed")
    there = torchvision_folder(folder, size, way)

    def read() -> Tensor:
        return torch.tensor(sum(len(x) for x, _ in wavemamba_batches(ours, 8, PICTURES // 8, 0)))

    def read_there() -> Tensor:
        return torch.tensor(sum(len(x) for x, _ in torchvision_batches(there, 8, 0)))

    return Side(call=read, inputs=()), Side(call=read_there, inputs=())


def saving(name: str, depth: int) -> tuple[Side, Side]:
    from safetensors.torch import save_model

    model = wavemamba.create_model(name, depth=depth)
    kept = tempfile.TemporaryDirectory()
    _kept.append(kept)

    def ours() -> Tensor:
        model.save_pretrained(Path(kept.name) / "ours")
        return torch.tensor(1.0)

    def peer() -> Tensor:
        save_model(model, str(Path(kept.name) / "model.safetensors"))
        return torch.tensor(1.0)

    return Side(call=ours, inputs=()), Side(call=peer, inputs=())


def loading(name: str, depth: int) -> tuple[Side, Side]:
    from safetensors.torch import load_model

    kept = tempfile.TemporaryDirectory()
    _kept.append(kept)
    wavemamba.create_model(name, depth=depth).save_pretrained(kept.name)

    def ours() -> Tensor:
        return _sum(wavemamba.models.load_pretrained(kept.name))

    def peer() -> Tensor:
        model = wavemamba.create_model(name, depth=depth)
        load_model(model, str(Path(kept.name) / "model.safetensors"))
        return _sum(model)

    return Side(call=ours, inputs=()), Side(call=peer, inputs=())


def _sum(model: nn.Module) -> Tensor:
    return torch.stack([parameter.detach().sum() for parameter in model.parameters()])


def averages(peer: str, name: str, depth: int) -> tuple[Side, Side]:
    model = wavemamba.create_model(name, depth=depth)
    ours = Averages(model, [0.999], warmup=False, device=torch.device("cpu"))
    if peer == "timm":
        from timm.utils import ModelEmaV3

        there = ModelEmaV3(model, decay=0.999)
        update = functools.partial(there.update, model)
    else:
        from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

        there = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)
        update = functools.partial(there.update_parameters, model)
        update()  # the first one copies
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(normal(*parameter.shape))

    def own() -> Tensor:
        ours.update(model, 100)  # past the first step, which copies
        return next(iter(ours.first.parameters()))

    def other() -> Tensor:
        update()
        return next(iter(there.module.parameters()))

    return Side(call=own, inputs=()), Side(call=other, inputs=())


CONTESTS = [
    *(
        Contest(
            name=f"data: ImageFolder, {PICTURES} pictures",
            peer=f"torchvision's, {way}",
            make=functools.partial(pictures, way),
            sizes=[(64,), (256,), (512,)],
            trains=False,
        )
        for way in ("bilinear", "bicubic")
    ),
    Contest(name="model: save_pretrained", peer="safetensors' save_model", make=saving, sizes=MODELS, trains=False),
    Contest(
        name="model: load_pretrained",
        peer="building it, and safetensors' load_model",
        make=loading,
        sizes=MODELS,
        trains=False,
    ),
    Contest(
        name="training: averages",
        peer="timm's ModelEmaV3",
        make=functools.partial(averages, "timm"),
        sizes=MODELS,
        trains=False,
    ),
    Contest(
        name="training: averages",
        peer="torch's AveragedModel",
        make=functools.partial(averages, "torch"),
        sizes=MODELS,
        trains=False,
    ),
]
