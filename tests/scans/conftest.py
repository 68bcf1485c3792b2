import pytest

from wavemamba import scan_order

ORDERS = [
    scan_order("raster"),
    scan_order("column"),
    scan_order("reverse"),
    scan_order("snake", transpose=True, reverse=True),
    scan_order("window", window=3),
    scan_order("window", window=(2, 5)),
    scan_order("window", tiles=4, transpose=True),
    scan_order("hilbert"),
    *(scan_order(family, path=path) for family in ("sweep", "zigma", "jpeg") for path in range(8)),
    scan_order("snake").then(scan_order("jpeg", path=3)),
    scan_order("column").then(scan_order("window", tiles=2).reversed()).transposed(),
]


@pytest.fixture(params=ORDERS, ids=lambda order: order.name)
def order(request):
    """Every family, options and combinations."""
    return request.param
