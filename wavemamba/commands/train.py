"""Train a diffusion model on images or latents, in one process or many.

    python -m wavemamba.train --data digits --out runs/digits
    python -m wavemamba.train --data FOLDER --image-size 64 --out runs/mine      (class = sub-folder)
    accelerate launch -m wavemamba.train --recipe imagenet256.yaml --data LATENTS --out runs/in

Start the same command again after a crash, a kill or a full disk: it goes on from the last good checkpoint and ends
with the weights that an unbroken run would have had. `--out` then holds checkpoints/, log.jsonl, samples/, and model/,
the averaged (EMA) weights with their config, which the sample command and `from_pretrained` read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch

from wavemamba.commands.from_config import add_options, config_from
from wavemamba.commands.parser import RecipeParser, number
from wavemamba.commands.running import exit_status
from wavemamba.files import printable
from wavemamba.training import TrainConfig, Trainer


def build_parser() -> RecipeParser:
    """The options; their names are also what a recipe may hold."""
    parser = RecipeParser(description=__doc__)
    add_options(parser, TrainConfig, required=("data", "out"))
    parser.add_argument(
        "--threads", type=number(int, 1), help="CPU threads of torch; the same number is needed for the same bits"
    )
    return parser


def main(arguments: Sequence[str] | None = None, trainer: Callable[[TrainConfig], Trainer] = Trainer) -> int:
    """Run the command, with a `Trainer` of one's own where one is given; returns its exit status."""
    return exit_status(lambda: _train(sys.argv[1:] if arguments is None else arguments, trainer))


def _train(arguments: Sequence[str], make_trainer: Callable[[TrainConfig], Trainer]) -> None:
    args = build_parser().parse(arguments)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    trainer = make_trainer(config_from(TrainConfig, args))
    outcome = trainer.train()
    if trainer.main and outcome == "stopped":
        print(f"stopped by a signal: step {trainer.step} is saved, the same command goes on")
    elif trainer.main:
        out = printable(str(trainer.out))
        print(f"{out}: trained {trainer.step} steps, averaged weights in {out}/model")
    trainer.accelerator.end_training()
