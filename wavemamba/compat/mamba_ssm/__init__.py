"""The interface of the mamba-ssm package (2.3, and what forks of version 1 add) on `wavemamba.ops`."""

from wavemamba.compat.mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
from wavemamba.compat.mamba_ssm.modules.mamba2 import Mamba2
from wavemamba.compat.mamba_ssm.modules.mamba_simple import Mamba
from wavemamba.compat.mamba_ssm.ops.selective_scan_interface import (
    mamba_inner_fn,
    mamba_inner_ref,
    selective_scan_fn,
    selective_scan_ref,
)

__version__ = "2.3.0"

__all__ = [
    "Mamba",
    "Mamba2",
    "MambaLMHeadModel",
    "mamba_inner_fn",
    "mamba_inner_ref",
    "selective_scan_fn",
    "selective_scan_ref",
]
