"""Where the subbands go on an (H, W) grid: "mosaic", "interleaved" or "channel".

The arrangement itself stands beside the Haar kernels, which fuse it with their transform.
"""

from wavemamba.ops.haar import LAYOUTS, Layout
from wavemamba.ops.haar.layout import arrange_bands, collect_bands

__all__ = ["LAYOUTS", "Layout", "arrange_bands", "collect_bands"]
