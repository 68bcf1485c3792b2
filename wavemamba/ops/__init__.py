"""Functions on tensors, each with several backends behind one signature."""

from wavemamba.ops.backend import SlowBackendWarning, use_backend
from wavemamba.ops.causal_conv1d import causal_conv1d
from wavemamba.ops.numba_warm_up import warm_up
from wavemamba.ops.scan_order import ScanOrder, scan_order
from wavemamba.ops.selective_scan import selective_scan
from wavemamba.ops.status import BackendStatus, backends
from wavemamba.ops.wavelet import from_haar_map, haar_analysis, haar_synthesis, to_haar_map
from wavemamba.ops.wavelet.transforms import FrequencyTransform, frequency_transform

__all__ = [
    "BackendStatus",
    "FrequencyTransform",
    "ScanOrder",
    "SlowBackendWarning",
    "backends",
    "causal_conv1d",
    "frequency_transform",
    "from_haar_map",
    "haar_analysis",
    "haar_synthesis",
    "scan_order",
    "selective_scan",
    "to_haar_map",
    "use_backend",
    "warm_up",
]
