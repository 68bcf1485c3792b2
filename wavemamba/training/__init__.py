"""The parts of a training run that must not lose anything: data order, randomness, checkpoints, recipes."""

from wavemamba.training.checkpointing import (
    Checkpoints,
    DamagedCheckpointWarning,
    read_checkpoint,
    write_atomically,
)
from wavemamba.training.data import Digits, ExampleSource, ImageFolder, read_image
from wavemamba.training.latents import LatentShards, LatentShardWriter
from wavemamba.training.randomness import (
    derive_seed,
    generator_for,
    random_state,
    restore_random_state,
    seed_everything,
)
from wavemamba.training.recipe import RecipeParser, parse_overrides
from wavemamba.training.stream import ExampleStream, StepBatches, batch_loader, slices_of_batch

__all__ = [
    "Checkpoints",
    "DamagedCheckpointWarning",
    "Digits",
    "ExampleSource",
    "ExampleStream",
    "ImageFolder",
    "LatentShardWriter",
    "LatentShards",
    "RecipeParser",
    "StepBatches",
    "batch_loader",
    "derive_seed",
    "generator_for",
    "parse_overrides",
    "random_state",
    "read_checkpoint",
    "read_image",
    "restore_random_state",
    "seed_everything",
    "slices_of_batch",
    "write_atomically",
]
