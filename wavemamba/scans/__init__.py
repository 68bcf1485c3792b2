"""Scan orders: in which sequence a mixer visits the tokens of an (H, W) grid."""

from wavemamba.scans import families
from wavemamba.scans.order import ScanOrder, scan_order
from wavemamba.scans.permutation import expect_permutation, invert_permutation, reverse_permutation
from wavemamba.scans.registry import list_scan_orders, register_scan_order

__all__ = [
    "ScanOrder",
    "expect_permutation",
    "families",
    "invert_permutation",
    "list_scan_orders",
    "register_scan_order",
    "reverse_permutation",
    "scan_order",
]
