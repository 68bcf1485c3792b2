"""The public blocks."""

from wavemamba.blocks.diffussm import DiffuSSMBlock
from wavemamba.blocks.dimsum import DiMSUMBlock
from wavemamba.blocks.einfft import EinFFT
from wavemamba.blocks.fusion import SpatialFrequencyFusion
from wavemamba.blocks.map_block import MapBlock
from wavemamba.blocks.pre_norm import PreNormBlock, SingleBranchBlock
from wavemamba.blocks.protocols import Attend, Attention, Branch, FeedForward, Fusion
from wavemamba.blocks.shared_attention import SharedAttention
from wavemamba.blocks.spatial import SpatialMambaBlock
from wavemamba.blocks.wavelet import WaveletMambaBlock, subband_scan
from wavemamba.blocks.zigma import ZigMaBlock

__all__ = [
    "Attend",
    "Attention",
    "Branch",
    "DiMSUMBlock",
    "DiffuSSMBlock",
    "EinFFT",
    "FeedForward",
    "Fusion",
    "MapBlock",
    "PreNormBlock",
    "SharedAttention",
    "SingleBranchBlock",
    "SpatialFrequencyFusion",
    "SpatialMambaBlock",
    "WaveletMambaBlock",
    "ZigMaBlock",
    "subband_scan",
]
