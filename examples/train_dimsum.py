"""Train a DiMSUM diffusion model on images or latents, in one process or many.

    python examples/train_dimsum.py --data digits --out runs/digits
    python examples/train_dimsum.py --data FOLDER --image-size 64 --out runs/mine      (class = sub-folder)
    accelerate launch examples/train_dimsum.py --recipe examples/recipes/imagenet256.yaml --data LATENTS --out runs/in

Start the same command again after a crash, a kill or a full disk: it goes on from the last good checkpoint and ends
with the weights that an unbroken run would have had. `--out` then holds checkpoints/, log.jsonl, samples/, and model/,
the averaged (EMA) weights with their config, which examples/sample_dimsum.py and `DiMSUM.from_pretrained` read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from tqdm import tqdm

from wavemamba import WavemambaError, create_model
from wavemamba import diffusion as wd
from wavemamba import training as wt

# What a resumed run may change without becoming another run.
FREE = {"recipe", "out", "log_every", "save_every", "keep", "eval_every", "sample_every", "sample_guidance", "workers",
        "sample_steps", "tensorboard", "threads", "accept_changes", "compile", "checkpoint_activations", "verify_data",
        "autoencoder", "epochs", "accumulate", "quiet"}  # fmt: skip


def build_parser() -> wt.RecipeParser:
    """The options; their names are also what a recipe may hold."""
    flag, count, natural = argparse.BooleanOptionalAction, wt.number(int, 1), wt.number(int, 0)
    parser = wt.RecipeParser(description=__doc__)
    add = parser.add_argument_group("data").add_argument
    add("--data", required=True, help="'digits', a folder of images (class = sub-folder), or a folder of latent shards")
    add("--image-size", type=count, help="side that images are scaled and cropped to (256)")
    add("--channels", type=int, choices=(1, 3), help="1: grey, 3: RGB images (3)")
    add("--mirror", action=flag, default=False, help="mirror every example left to right half of the time")
    add("--holdout", type=wt.number(float, 0, 1), default=0.0, help="fraction kept out of training for --eval-every")
    add("--workers", type=natural, default=0, help="processes that load data, per training process")
    add("--verify-data", action=flag, default=False, help="compare latent shards with their checksums first")
    add = parser.add_argument_group("model").add_argument
    add("--model", default="dimsum_tiny", help="a name of wavemamba.list_models()")
    add("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="model options, such as depth=4")
    add = parser.add_argument_group("objective").add_argument
    add("--path", choices=sorted(wd.PATHS), default="gvp", help="from noise to data")
    add("--prediction", choices=wd.PREDICTIONS, default="velocity", help="what the model predicts")
    add("--weighting", choices=wd.WEIGHTINGS, default="none", help="weight of the loss")
    add("--time-sampling", choices=sorted(wd.TIME_SAMPLINGS), default="uniform", help="training times")
    add = parser.add_argument_group("optimisation (AdamW)").add_argument
    add("--steps", type=count, default=10_000, help="optimiser steps in all")
    add("--epochs", type=wt.number(float, 0, above=True), help="instead of --steps: passes over the data")
    add("--batch-size", type=count, default=128, help="examples a step, over all processes")
    add("--accumulate", type=count, default=1, help="micro-batches that a step is split into")
    add("--lr", type=wt.number(float, 0), default=1e-4, help="learning rate after warm-up")
    add("--weight-decay", type=wt.number(float, 0), default=0.0, help="not applied to biases, norms, A_log, D")
    add("--schedule", choices=wt.SCHEDULES, default="constant", help="of the learning rate")
    add("--warmup", type=natural, default=0, help="steps over which the learning rate rises")
    add("--clip", type=wt.number(float, 0), default=2.0, help="largest norm of the gradient; 0: no clipping")
    add("--ema", type=wt.number(float, 0, 1), default=0.9999, help="decay of the averaged weights")
    add("--ema-warmup", action=flag, default=True, help="lower decay at first: 1 - (1 + step) ** (-2/3)")
    add("--seed", type=int, default=0, help="of weights, order, noise, times, dropout")
    add("--precision", choices=("no", "bf16"), default="no", help="bf16: autocast")
    add("--compile", action=flag, default=False, help="torch.compile the model")
    add("--checkpoint-activations", action=flag, default=False, help="recompute activations: less memory, slower")
    add("--threads", type=count, help="CPU threads of torch; the same number is needed for the same bits")
    add = parser.add_argument_group("output").add_argument
    add("--out", required=True, help="folder of the run")
    add("--save-every", type=natural, default=1000, help="steps between checkpoints")
    add("--keep", type=count, default=2, help="checkpoints to keep")
    add("--log-every", type=natural, default=50, help="steps between lines of log.jsonl")
    add("--eval-every", type=natural, default=0, help="steps between held-out losses of the EMA weights (0: never)")
    add("--sample-every", type=natural, default=0, help="steps between sample grids and model/ exports (0: at the end)")
    add("--sample-guidance", type=wt.number(float, 0), default=1.5, help="guidance scale of the sample grids")
    add("--sample-steps", type=count, default=25, help="Heun steps of the sample grids")
    add("--autoencoder", help="folder or hub id that decodes latents for the sample grids")
    add("--tensorboard", action=flag, default=False, help="scalars and sample grids for TensorBoard, in tensorboard/")
    add("--accept-changes", action=flag, default=False, help="go on although settings differ from the checkpoint's")
    add("--quiet", action=flag, default=False, help="no progress bar")
    return parser


class Run:
    """One process of a training run."""

    def __init__(self, args: argparse.Namespace, stop: wt.StopSignal) -> None:
        self.args, self.out, self.stop = args, Path(args.out), stop
        accelerator = Accelerator(mixed_precision=args.precision, cpu=not torch.accelerator.is_available())
        self.accelerator, self.main, self.device = accelerator, accelerator.is_main_process, accelerator.device
        whole = wt.open_source(args.data, size=args.image_size, channels=args.channels, mirror=args.mirror,
                               verify=args.verify_data and self.main)  # fmt: skip
        self.classes, self.shape = whole.classes, whole.shape
        self.source, self.held_out = wt.hold_out(whole, args.holdout, args.seed)
        args.steps = math.ceil(args.epochs * len(self.source) / args.batch_size) if args.epochs else args.steps
        place = {"rank": accelerator.process_index, "processes": accelerator.num_processes}
        self.share = {**place, "accumulate": args.accumulate}
        self.slices = wt.slices_of_batch(args.batch_size, **self.share)
        self.objective = wd.Objective(args.path, args.prediction, args.weighting, time_sampling=args.time_sampling)
        model = self.build_model()
        self.ema = ModelEmaV3(model, decay=args.ema, use_warmup=args.ema_warmup).to(self.device)
        model.set_grad_checkpointing(args.checkpoint_activations)
        if args.compile:
            model.compile()
        groups = param_groups_weight_decay(model, args.weight_decay, model.no_weight_decay())
        self.model, optimizer = accelerator.prepare(model, torch.optim.AdamW(groups, lr=args.lr))
        if accelerator.is_fsdp2:
            self.ema.module = fsdp2_prepare_model(accelerator, self.ema.module)
        factor = wt.learning_rate_factor(args.schedule, warmup=args.warmup, steps=args.steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, factor)
        load = wd.Autoencoder.from_pretrained  # now, rather than in the middle of the run
        self.decode = load(args.autoencoder, device=self.device).decode if args.autoencoder and self.main else None
        self.state = wt.TrainState(accelerator.unwrap_model(self.model), self.ema.module, optimizer.optimizer, schedule)
        self.checkpoints = wt.Checkpoints(self.out / "checkpoints", keep=args.keep)
        self.log = wt.RunLog(self.out, tensorboard=args.tensorboard, enabled=self.main)
        self.losses = torch.zeros(2, dtype=torch.float64, device=self.device)  # their sum and number since the last log
        self.finite = torch.ones((), dtype=torch.bool, device=self.device)

    def build_model(self) -> nn.Module:
        """The model at step 0; classes and sizes come from the data unless --set says otherwise."""
        wt.seed_everything(self.args.seed, "weights")
        classes = len(self.classes) if len(self.classes) > 1 else 0
        overrides = {"img_size": self.shape[1:], "in_chans": self.shape[0], "num_classes": classes}
        return create_model(self.args.model, **{**overrides, **wt.parse_overrides(self.args.set)})

    def settings(self) -> dict:
        """What makes this run another run when it changes; a constant schedule may be prolonged."""
        skip = FREE | ({"steps"} if self.args.schedule == "constant" else set())
        chosen = {name: value for name, value in vars(self.args).items() if name not in skip}
        return {**chosen, "examples": len(self.source), "classes": list(self.classes)}

    def resume(self) -> None:
        """Go on from the last good checkpoint, if there is one."""
        loaded = self.checkpoints.load()
        wt.check_same_checkpoint(loaded and loaded[0], self.out)
        if loaded is not None:
            step, state = loaded
            if not self.args.accept_changes:
                wt.check_same_settings(state["settings"], self.settings(), str(self.out))
            self.state.restore(state)
            self.losses.copy_(torch.tensor(state["losses"]))
            if self.main:
                self.checkpoints.set_aside_after(step)
        self.log.start(self.state.step, self.settings())

    def save(self) -> None:
        """Write a checkpoint of this step, unless something in it is NaN."""
        self.check_finite()
        losses = self.accelerator.reduce(self.losses, "mean").tolist()
        state = {**self.state.collect(), "losses": losses, "settings": self.settings(),
                 "data": {"examples_seen": self.state.step * self.args.batch_size}}  # fmt: skip
        if self.main:
            self.checkpoints.save(self.state.step, state)
        self.accelerator.wait_for_everyone()

    def check_finite(self) -> None:
        """Look, now that waiting for the device is due anyway, whether every gradient so far was finite."""
        if not self.finite.item():
            raise WavemambaError(
                f"the loss or its gradient became NaN or infinite by step {self.state.step}; it was not saved, "
                f"{self.checkpoints.last_good()}; start again with --accept-changes and a lower --lr or --clip"
            )

    def draw(self, purpose: str, number: int, part: slice) -> tuple[Tensor, Tensor]:
        """Times and noise for a part of a batch; drawn whole, they do not depend on who works on which part."""
        count, generator = self.args.batch_size, wt.generator_for(self.args.seed, purpose, number)
        t = self.objective.time_sampling.sample(count, self.objective.train_interval, generator=generator)
        x0 = torch.randn(count, *self.shape, generator=generator)
        return t[part].to(self.device), x0[part].to(self.device)

    def train_step(self, batches: Iterator) -> Tensor:
        """One optimiser step; all its randomness comes from the seed and the step's number."""
        args, step = self.args, self.state.step
        for part in self.slices:
            x, y = (tensor.to(self.device, non_blocking=True) for tensor in next(batches))
            t, x0 = self.draw("noise", step, part)
            wt.seed_everything(args.seed, "step", step, part.start)
            with contextlib.nullcontext() if part is self.slices[-1] else self.accelerator.no_sync(self.model):
                loss = self.objective.loss(self.model, x, t=t, x0=x0, **self.labels(y)).mean() / args.accumulate
                self.accelerator.backward(loss)
            self.losses[0] += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), args.clip or math.inf)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.finite &= norm.isfinite()
        self.state.optimizer.step()
        self.state.schedule.step()
        self.state.optimizer.zero_grad()
        self.losses[1] += 1
        self.state.step += 1
        self.ema.update(self.state.model, step=self.state.step)
        return norm

    def labels(self, y: Tensor) -> dict[str, Tensor]:
        """What the model is told beside image and time: nothing where there is one class."""
        return {"y": y} if len(self.classes) > 1 else {}

    def held_out_loss(self) -> float:
        """The averaged weights' loss on the part of the data that was kept out."""

        def loss(x: Tensor, y: Tensor, batch: int, part: slice) -> Tensor:
            t, x0 = self.draw("held out", batch, part)
            return self.objective.loss(self.ema.module, x, t=t, x0=x0, **self.labels(y))

        return wt.held_out_loss(loss, self.held_out, batch_size=self.args.batch_size, device=self.device)

    def sample_grid(self) -> None:
        """Eight samples of up to ten classes by the averaged weights, the same noise every time."""
        names = self.classes[:10]
        labels = torch.arange(len(names), device=self.device).repeat_interleave(8)
        noise = wd.sample_noise((len(labels), *self.shape), seeds=range(len(labels)), device=self.device)
        model = self.ema.module
        if len(names) > 1 and model.null_class is not None:
            model = wd.ClassifierFreeGuidance(model, self.args.sample_guidance)
        known = {"steps": self.args.sample_steps, **self.labels(labels)}
        images = wd.sample_ode(model, noise, self.objective, solver="heun", **known)
        if self.decode:
            images = torch.cat([self.decode(some) for some in images.split(8)])
        self.log.picture(self.state.step, wt.image_grid(images, 8, row_labels=names, tile=32))

    def export(self) -> None:
        """Write model/: the averaged weights, the model's config, and what sampling has to know."""
        self.check_finite()
        weights = self.state.averaged_weights()
        if self.main:
            model = self.build_model()
            model.load_state_dict(weights)
            model.save_pretrained(self.out / "model")
            about = {**self.settings(), "autoencoder": self.args.autoencoder, "weights": "ema", "step": self.state.step}
            wt.write_atomically(self.out / "model" / "training.json", json.dumps(about, indent=1).encode())
        self.accelerator.wait_for_everyone()

    def train(self) -> None:
        """From where the run stands to its end."""
        args, state = self.args, self.state
        self.resume()
        batches = iter(wt.Batches(self.source, seed=args.seed, batch_size=args.batch_size, start=state.step,
                                  stop=args.steps, workers=args.workers, pin_memory=self.device.type == "cuda",
                                  **self.share))  # fmt: skip
        bar = tqdm(total=args.steps, initial=state.step, disable=not self.main or args.quiet, unit="step")

        def due(every: int) -> bool:
            return every > 0 and state.step % every == 0

        while state.step < args.steps:
            norm = self.train_step(batches)
            bar.update()
            if due(args.log_every):
                self.check_finite()
                total, count = self.accelerator.reduce(self.losses, "mean").tolist()
                self.losses.zero_()
                bar.set_postfix(loss=f"{total / count:.4f}")
                row = {"loss": total / count, "lr": state.schedule.get_last_lr()[0], "gradient_norm": norm.item()}
                self.log.write(state.step, {**row, "epoch": state.step * args.batch_size / len(self.source)})
            if due(args.eval_every) and self.held_out is not None:
                self.log.write(state.step, {"held_out_loss": self.held_out_loss()})
            if due(args.sample_every) and state.step < args.steps:
                self.sample_grid()
                self.export()
            stop = self.stop.agreed(state.step, self.device)
            if stop or due(args.save_every) or state.step == args.steps:
                self.save()
            if stop and state.step < args.steps:
                bar.close()
                self.accelerator.print(f"stopped by a signal: step {state.step} is saved, the same command goes on")
                return
        bar.close()
        self.sample_grid()
        self.export()
        self.accelerator.print(f"{args.out}: trained {state.step} steps, averaged weights in {self.out / 'model'}")


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns its exit status."""
    try:
        args = build_parser().parse(sys.argv[1:] if arguments is None else arguments)
        torch.set_num_threads(args.threads or torch.get_num_threads())
        with wt.StopSignal() as stop:
            run = Run(args, stop)
            with wt.FolderLock(run.out, enabled=run.main):
                run.train()
            run.accelerator.end_training()
    except (WavemambaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
