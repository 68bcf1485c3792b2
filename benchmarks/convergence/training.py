"""One run of the study: a training that is judged on its way, and can be stopped and gone on with."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from functools import cache
from pathlib import Path
from typing import Any

from judge import Judge
from pictures import Parts, load, spread
from shared import machine
from table import Run, Scale

import wavemamba
from wavemamba import Sampler, WavemambaError
from wavemamba.data import Part
from wavemamba.errors import SolverError
from wavemamba.files import write_atomically
from wavemamba.sampling import Settings
from wavemamba.seeds import derive_seed
from wavemamba.training import Callback, SampleGrids, TrainConfig, Trainer, read_log

WARMUP, CLIP, EMA = 100, 2.0, 0.998
LOG_EVERY, SAVE_EVERY, SAMPLED_AT_ONCE = 20, 100, 100


@cache
def data_and_judge(name: str) -> tuple[Parts, Judge]:
    """A data set and its judge, read once."""
    parts = load(name)
    return parts, Judge(name, parts)


class Deadline(Callback):
    """Stops a training in good order once its time is over.

    Args:
        end: on the clock of `time.monotonic`.
    """

    def __init__(self, end: float) -> None:
        self.end = end

    def on_step(self, trainer: Trainer) -> None:
        if time.monotonic() > self.end:
            signal.raise_signal(signal.SIGTERM)  # the trainer saves, and stops


class JudgedTrainer(Trainer):
    """Judges the averaged model at the moments of a run's scale.

    Args:
        run: what is trained.
        scale: how long, and when it is judged.
        folder: of the training.
        end: when to stop, on the clock of `time.monotonic`.
    """

    def __init__(self, run: Run, scale: Scale, folder: Path, end: float) -> None:
        self.run, self.scale = run, scale
        self.parts, self.judge = data_and_judge(run.row.data)
        config = TrainConfig(
            model=run.row.model,
            model_options=dict(run.row.options),
            path=run.row.path,
            steps=run.steps,
            batch_size=scale.batch_size,
            lr=run.rate,
            warmup=WARMUP,
            clip=CLIP,
            ema=(EMA,),
            seed=run.seed,
            out=str(folder),
            save_every=SAVE_EVERY,
            keep=1,
            log_every=LOG_EVERY,
            eval_every=1,
            quiet=True,
        )
        super().__init__(config, data=self.parts.train, callbacks=[Deadline(end)])
        self.callbacks = [callback for callback in self.callbacks if not isinstance(callback, SampleGrids)]

    def prepare(self) -> None:
        super().prepare()
        reference = self.parts.reference
        self.held_out = Part(reference, spread(reference, min(self.scale.held_out, len(reference))))

    def evaluate(self) -> dict[str, float]:
        if self.step < self.scale.rate_steps or self.step % self.scale.judge_every:
            return {}
        asked = self.parts.reference.labels[spread(self.parts.reference, self.scale.samples)]
        drawn = Sampler(self.averaged_model, self.objective)(
            asked.tolist(),
            [derive_seed(0, "study", i) for i in range(self.scale.samples)],
            settings=Settings(solver="heun", steps=self.scale.solver_steps, guidance=1.0),
            batch_size=SAMPLED_AT_ONCE,
            progress=False,
        )
        return {**super().evaluate(), **self.judge.scores(drawn.images, asked)}


def train(run: Run, scale: Scale, folder: Path, results: Path, end: float) -> str:
    """Take a run to its length, from where it stands, and write its result.

    Args:
        run: what is trained.
        scale: how long, and when it is judged.
        folder: where checkpoints lie until the study is over.
        results: where the JSON and the log go.
        end: when to stop, on the clock of `time.monotonic`.

    Returns:
        "finished", "stopped" or "diverged".
    """
    trainer = JudgedTrainer(run, scale, folder, end)
    begun, diverged = time.monotonic(), None
    try:
        outcome: str = trainer.train()
    except WavemambaError as error:
        # A loss that is no longer finite has no class of its own; every other error is one of the study.
        if type(error) is not WavemambaError and not isinstance(error, SolverError):
            raise
        outcome, diverged = "diverged", str(error).replace(str(folder), folder.name)
    if outcome == "stopped":
        return outcome
    log = read_log(folder / "log.jsonl")
    result: dict[str, Any] = {
        **{name: getattr(run.row, name) for name in ("group", "data", "path", "name", "model")},
        "options": dict(run.row.options),
        "rate": run.rate,
        "seed": run.seed,
        "steps": trainer.step,
        "parameters": sum(p.numel() for p in trainer.averaged_model.parameters()),
        "curve": [point for point in log if "frechet" in point],
        "judge": trainer.judge.sha256,
        "scale": dataclasses.asdict(scale),
        "warmup": WARMUP,
        "clip": CLIP,
        "ema": EMA,
        "seconds_of_this_call": round(time.monotonic() - begun, 1),
        "version": wavemamba.__version__,
        "machine": machine(),
    }
    if diverged is not None:
        result["diverged"] = diverged
    results.mkdir(parents=True, exist_ok=True)
    write_atomically(results / f"{run.key}.jsonl", (folder / "log.jsonl").read_bytes())
    write_atomically(results / f"{run.key}.json", (json.dumps(result, indent=1) + "\n").encode())
    return outcome
