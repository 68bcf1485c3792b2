"""Scan orders: in which sequence a mixer visits the tokens of an (H, W) grid."""

from wavemamba.scans.order import ScanOrder, invert_permutation, scan_order

__all__ = ["ScanOrder", "invert_permutation", "scan_order"]
