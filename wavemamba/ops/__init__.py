"""Functions on tensors, each with several backends behind one signature."""

from wavemamba.ops.causal_conv1d import causal_conv1d
from wavemamba.ops.dispatch.backend import SlowBackendWarning, use_backend
from wavemamba.ops.dispatch.status import BackendStatus, backends
from wavemamba.ops.gla_scan import gla_scan
from wavemamba.ops.haar import from_haar_map, haar_analysis, haar_synthesis, to_haar_map
from wavemamba.ops.selective_scan import selective_scan
from wavemamba.ops.ssd_scan import ssd_scan
from wavemamba.ops.warm_up import warm_up

__all__ = [
    "BackendStatus",
    "SlowBackendWarning",
    "backends",
    "causal_conv1d",
    "from_haar_map",
    "gla_scan",
    "haar_analysis",
    "haar_synthesis",
    "selective_scan",
    "ssd_scan",
    "to_haar_map",
    "use_backend",
    "warm_up",
]
