"""The interfaces of mamba-ssm and causal-conv1d, for code written against them: on a CPU, and where they do not build.

import wavemamba.compat
wavemamba.compat.install()
from mamba_ssm import Mamba  # wavemamba's
"""

from wavemamba.compat.installing import install, uninstall
from wavemamba.compat.state_dicts import from_mamba, from_mamba2, to_mamba, to_mamba2

__all__ = ["from_mamba", "from_mamba2", "install", "to_mamba", "to_mamba2", "uninstall"]
