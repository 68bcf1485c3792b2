"""Training runs that lose nothing: configuration, trainer, checkpoints, callbacks."""

from wavemamba.training.callbacks import Callback, Outcome
from wavemamba.training.checkpoint_files import Checkpoints, DamagedCheckpointWarning, read_checkpoint
from wavemamba.training.config import TrainConfig
from wavemamba.training.evaluation import held_out_loss
from wavemamba.training.log import RunLog, read_log
from wavemamba.training.progress import ProgressBar
from wavemamba.training.run_parts import Batch
from wavemamba.training.sample_grids import SampleGrids
from wavemamba.training.schedules import LR_SCHEDULES, learning_rate_factor
from wavemamba.training.state import TrainState
from wavemamba.training.stopping import StopSignal
from wavemamba.training.trackers import Trackers
from wavemamba.training.trainer import Trainer

__all__ = [
    "LR_SCHEDULES",
    "Batch",
    "Callback",
    "Checkpoints",
    "DamagedCheckpointWarning",
    "Outcome",
    "ProgressBar",
    "RunLog",
    "SampleGrids",
    "StopSignal",
    "Trackers",
    "TrainConfig",
    "TrainState",
    "Trainer",
    "held_out_loss",
    "learning_rate_factor",
    "read_checkpoint",
    "read_log",
]
