"""The parts of a training run that must not lose anything: data order, randomness, checkpoints, recipes."""

from wavemamba.data import (
    Batches,
    Digits,
    ExampleSource,
    ExampleStream,
    ImageFolder,
    LatentShards,
    LatentShardWriter,
    Part,
    PictureView,
    StepBatches,
    hold_out,
    open_source,
    slices_of_batch,
)
from wavemamba.files import write_atomically
from wavemamba.locks import FolderLock
from wavemamba.seeds import derive_seed, generator_for
from wavemamba.training.checkpointing import (
    Checkpoints,
    DamagedCheckpointWarning,
    read_checkpoint,
)
from wavemamba.training.control import (
    SCHEDULES,
    StopSignal,
    check_same_checkpoint,
    check_same_settings,
    learning_rate_factor,
)
from wavemamba.training.evaluation import held_out_loss
from wavemamba.training.grids import image_grid, to_uint8
from wavemamba.training.log import RunLog, read_log
from wavemamba.training.randomness import (
    random_state,
    restore_random_state,
    seed_everything,
)
from wavemamba.training.recipe import RecipeParser, device, number, parse_overrides
from wavemamba.training.state import TrainState

__all__ = [
    "SCHEDULES",
    "Batches",
    "Checkpoints",
    "DamagedCheckpointWarning",
    "Digits",
    "ExampleSource",
    "ExampleStream",
    "FolderLock",
    "ImageFolder",
    "LatentShardWriter",
    "LatentShards",
    "Part",
    "PictureView",
    "RecipeParser",
    "RunLog",
    "StepBatches",
    "StopSignal",
    "TrainState",
    "check_same_checkpoint",
    "check_same_settings",
    "derive_seed",
    "device",
    "generator_for",
    "held_out_loss",
    "hold_out",
    "image_grid",
    "learning_rate_factor",
    "number",
    "open_source",
    "parse_overrides",
    "random_state",
    "read_checkpoint",
    "read_log",
    "restore_random_state",
    "seed_everything",
    "slices_of_batch",
    "to_uint8",
    "write_atomically",
]
