"""The interfaces of mamba-ssm and causal-conv1d, for code written against them: on a CPU, and where they do not build.

import wavemamba.compat
wavemamba.compat.install()
from mamba_ssm import Mamba  # wavemamba's
"""

from wavemamba.compat.installing import install, uninstall
from wavemamba.compat.state_dicts import from_mamba, to_mamba

__all__ = ["from_mamba", "install", "to_mamba", "uninstall"]
