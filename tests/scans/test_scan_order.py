import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support import GOLDEN

from wavemamba import ConfigError, ShapeError, scan_order
from wavemamba.scans import invert_permutation

GOLDEN_ORDERS = load_file(GOLDEN / "scan_orders.safetensors")
# The released code walks only 15 of the 25 tokens on these odd grids.
INCOMPLETE = {f"jpeg.5.{path}" for path in (0, 2, 4, 6)}


@pytest.mark.parametrize("key", sorted(set(GOLDEN_ORDERS) - INCOMPLETE))
def test_golden_orders(key):
    family, side, *rest = key.split(".")
    if family == "window":
        order = scan_order("window", window=int(rest[0]), transpose=rest[1] == "col")
    else:
        order = scan_order(family, path=int(rest[0]))
    assert torch.equal(order.permutation(int(side), int(side)), GOLDEN_ORDERS[key].long())


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 13), width=st.integers(1, 13))
def test_every_order_is_a_permutation_with_its_inverse(order, height, width):
    forward, back = order.permutation(height, width), order.inverse(height, width)
    tokens = torch.arange(height * width)
    assert forward.dtype == back.dtype == torch.int64
    assert torch.equal(forward.sort().values, tokens)
    assert torch.equal(forward[back], tokens)
    assert torch.equal(invert_permutation(forward), back)
    assert torch.equal(order.reversed().permutation(height, width), forward.flip(0))


@pytest.mark.parametrize("grid", [(8, 8), (16, 16), (7, 12), (13, 5), (1, 9), (6, 1)])
def test_hilbert_steps_to_neighbours(grid):
    visited = scan_order("hilbert").permutation(*grid).numpy()
    rows, columns = np.divmod(visited, grid[1])
    steps = np.maximum(abs(np.diff(rows)), abs(np.diff(columns)))
    assert steps.max(initial=0) <= 1  # one diagonal step is needed where both sides are odd


def test_a_walk_on_a_known_grid():
    assert scan_order("column").permutation(2, 3).tolist() == [0, 3, 1, 4, 2, 5]
    assert scan_order("snake").permutation(2, 3).tolist() == [0, 1, 2, 5, 4, 3]
    assert scan_order("window", window=2).permutation(2, 4).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert scan_order("raster", transpose=True, reverse=True).permutation(2, 2).tolist() == [3, 1, 2, 0]


def test_permutations_are_cached():
    assert scan_order("jpeg", path=2).permutation(6, 6) is scan_order("jpeg", path=2).permutation(6, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "hilbrt"}, "'hilbrt'; did you mean 'hilbert'.*register_scan_order"),
        ({"name": "jpeg", "path": 8}, "0 to 7"),
        ({"name": "jpeg(path=8)"}, "0 to 7"),
        ({"name": "jpeg", "paht": 1}, "did you mean path"),
        ({"name": "window"}, "window = None, tiles = None"),
        ({"name": "window", "window": 0}, ">= 1"),
        ({"name": "window", "window": (1, 2, 3)}, ">= 1"),
        ({"name": "window", "window": 2, "tiles": 2}, "one of them"),
        ({"name": "raster", "window": 2}, "unknown option of the scan order 'raster': 'window'"),
        ({"name": "window", "tiles": 0}, "tiles"),
        ({"name": "window", "tiles": torch.ones(())}, "numbers, text"),
        ({"name": "reversed(snake)", "path": 1}, "no options beside"),
        ({"name": "reversed(snake"}, "'reversed.hilbert.'"),
        ({"name": "jpeg(__import__('os'))"}, "expected a name such as"),
        ({"name": "jpeg(path=open('x'))"}, "expected a name such as"),
        ({"name": "(" * 100_000}, "expected its name"),
        ({"name": None}, "got 'None'"),
    ],
)
def test_bad_options_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        scan_order(**arguments)


def test_empty_grid_raises():
    with pytest.raises(ShapeError, match="grid"):
        scan_order("raster").permutation(0, 3)


def test_the_order_for_a_mixer():
    assert scan_order("raster").order_for(2, 3) is None
    assert scan_order("snake").order_for(2, 3) is scan_order("snake").permutation(2, 3)
