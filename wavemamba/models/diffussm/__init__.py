"""The DiffuSSM family: diffusion without attention and without patches."""

from wavemamba.models.diffussm.config import DiffuSSMConfig
from wavemamba.models.diffussm.model import DiffuSSM

__all__ = ["DiffuSSM", "DiffuSSMConfig"]
