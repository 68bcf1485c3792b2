"""Scan orders: in which sequence a mixer visits the tokens of an (H, W) grid."""

from wavemamba.scans.order import ScanOrder, scan_order
from wavemamba.scans.permutation import expect_permutation, invert_permutation, reverse_permutation

__all__ = ["ScanOrder", "expect_permutation", "invert_permutation", "reverse_permutation", "scan_order"]
