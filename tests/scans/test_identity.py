"""What an order is known by: two functions under one name, names in configs, pickles and compiled graphs."""

import copy
import functools
import pickle

import pytest
import torch
from torch import nn

from wavemamba import ConfigError, ScanOrder, scan_order
from wavemamba.scans import list_scan_orders, register_scan_order


def forwards(H, W):
    return list(range(H * W))


def backwards(H, W):
    return list(range(H * W))[::-1]


def test_two_functions_under_one_name_are_two_orders():
    orders = [ScanOrder("mine", forwards), ScanOrder("mine", backwards)]
    first, last = (order.permutation(2, 3).tolist() for order in orders)
    assert first == [0, 1, 2, 3, 4, 5]
    assert last == [5, 4, 3, 2, 1, 0]
    assert orders[0] != orders[1]
    assert orders[0].reversed() != orders[1].reversed()
    assert orders[0].reversed().permutation(2, 3).tolist() == last
    assert len({*orders, ScanOrder("mine", forwards)}) == 2
    assert ScanOrder("raster", backwards) != scan_order("raster")
    assert not ScanOrder("raster", backwards).is_identity


def test_an_order_of_the_library_is_made_from_its_name(order):
    for other in (scan_order(order.name), pickle.loads(pickle.dumps(order)), copy.deepcopy(order)):
        assert other == order
        assert hash(other) == hash(order)
        assert torch.equal(other.permutation(3, 5), order.permutation(3, 5))


@pytest.mark.parametrize("name", ["Hilbert", "HILBERT", "jpeg(path=3)", "Reversed( Window(window=(2, 3)) )"])
def test_names_may_be_spelt_loosely(name):
    assert scan_order(scan_order(name).name) == scan_order(name)


def test_an_order_of_ones_own_has_a_name():
    register_scan_order("backwards", backwards)
    register_scan_order("backwards", backwards)
    with pytest.raises(ConfigError, match="taken"):
        register_scan_order("Backwards", forwards)
    for name in ("reversed", "my order", "", None, "snake"):
        with pytest.raises(ConfigError, match="name"):
            register_scan_order(name, backwards)
    assert "backwards" in list_scan_orders()
    assert scan_order("transposed(backwards)").permutation(1, 2).tolist() == [1, 0]


def test_options_of_ones_own_order_belong_to_its_name():
    register_scan_order("rolled", lambda H, W, by, times=1: [(t + by * times) % (H * W) for t in range(H * W)])
    order = scan_order("rolled", by=1, times=2)
    assert order.name == "rolled(by=1, times=2)"
    assert order == scan_order("rolled(times=2, by=1)") != scan_order("rolled", by=1)
    assert order.permutation(1, 4).tolist() == [2, 3, 0, 1]
    with pytest.raises(ConfigError, match="pass by"):
        scan_order("rolled")


class Gather(nn.Module):
    def __init__(self, order):
        super().__init__()
        self.order = order

    def forward(self, x):
        return x.flatten(1, 2)[:, self.order.permutation(x.shape[1], x.shape[2], device=x.device)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: scan_order("hilbert"),
        lambda: ScanOrder("mine", functools.partial(backwards)),
        lambda: ScanOrder("mine", forwards),
        lambda: ScanOrder("mine", backwards).then(scan_order("snake")),
    ],
    ids=["of the library", "unequal to itself", "unnamed", "of an unnamed one"],
)
def test_a_graph_of_any_grid_knows_its_order(make):
    gather = Gather(make())
    compiled = torch.compile(gather, fullgraph=True, backend="aot_eager", dynamic=True)
    for grid in ((3, 4), (5, 6), (4, 8)):
        x = torch.randn(1, *grid, 2)
        assert torch.equal(compiled(x), gather(x))
    sizes = {1: torch.export.Dim("h", min=2, max=64), 2: torch.export.Dim("w", min=2, max=64)}
    exported = torch.export.export(gather, (torch.randn(1, 6, 8, 2),), dynamic_shapes={"x": sizes})
    x = torch.randn(1, 5, 7, 2)
    expected = gather(x)
    del gather, compiled
    assert torch.equal(exported.module()(x), expected)


def test_a_graph_of_another_process_names_what_it_lacks():
    with pytest.raises(ConfigError, match="register_scan_order"):
        torch.ops.wavemamba.scan_permutation("mine #999999", 2, 2, torch.device("cpu"), False)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_sizes_of_a_trace_are_numbers():
    gather = Gather(scan_order("column"))
    x = torch.randn(1, 3, 4, 2)
    assert torch.equal(torch.jit.trace(gather, x)(x), gather(x))
