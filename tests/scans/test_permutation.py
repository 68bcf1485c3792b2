"""What counts as an order, wherever it comes from."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from wavemamba import ScanOrder, ShapeError, scan_order
from wavemamba.scans import expect_permutation, invert_permutation, reverse_permutation
from wavemamba.scans.permutation import trust


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_true_permutation_passes(dtype):
    order = torch.randperm(12).to(dtype)
    checked = expect_permutation(order, 12)
    assert checked.dtype == torch.int64
    assert torch.equal(checked, order.long())
    assert expect_permutation(torch.empty(0, dtype=dtype), 0).shape == (0,)
    assert torch.equal(
        expect_permutation(torch.randperm(12)[::1].flip(0)[2:4].argsort(), 2).sort().values, torch.arange(2)
    )


@pytest.mark.parametrize(
    ("order", "received"),
    [
        (torch.tensor([0, 0, 1, 1, 2, 2]), "token 3 and a token visited twice"),
        (torch.tensor([0, 1, 2, 3, 4, 6]), "got 6"),
        (torch.tensor([0, 1, 2, 3, 4, -1]), "got -1"),
        (torch.tensor([3, 4, 5, 6, 7, 8]), "got 6"),
        (torch.tensor([2**31, 1, 2, 3, 4, 5]), "got 2147483648"),
        (torch.arange(5), r"got \(5,\)"),
        (torch.arange(6)[None], r"got \(1, 6\)"),
        (torch.arange(6.0), "float32"),
        (torch.ones(6, dtype=torch.bool), "bool"),
        (torch.arange(6, dtype=torch.int16), "int16"),
        (list(range(6)), "list"),
        (None, "NoneType"),
    ],
)
def test_what_is_none_is_named(order, received):
    with pytest.raises(ShapeError, match=f"order: expected .*{received}.*; pass a permutation"):
        expect_permutation(order, 6)


def test_the_verdict_on_a_scan_order_ends_when_somebody_writes_to_it():
    order = ScanOrder("written to", lambda H, W: list(range(H * W))[::-1])
    for made in (order.permutation(2, 3), order.inverse(2, 3), reverse_permutation(order.permutation(2, 3))):
        assert expect_permutation(made, 6) is made
        made[0] = made[1]
        with pytest.raises(ShapeError, match="visited twice"):
            expect_permutation(made, 6)
    assert torch.equal(order.permutation(2, 3), torch.arange(6).flip(0))  # the cache is not spoilt
    assert torch.equal(order.inverse(2, 3), torch.arange(6).flip(0))


def test_what_is_written_past_the_count_of_versions_is_seen():
    order = ScanOrder("shared with numpy", lambda H, W: list(range(H * W)))
    for write in (lambda made: made.numpy().__setitem__(0, 10**9), lambda made: made.data.fill_(1)):
        made = order.permutation(2, 3).clone()
        assert expect_permutation(made, 6) is made
        trust(made)
        write(made)
        with pytest.raises(ShapeError, match="order: expected"):
            expect_permutation(made, 6)


def test_one_order_an_entry_of_vmap_is_refused():
    orders = torch.stack([torch.randperm(6), torch.randperm(6)])
    with pytest.raises(ShapeError, match="one order for all entries of vmap"):
        torch.vmap(lambda order: expect_permutation(order, 6))(orders)
    for order in (orders[0], scan_order("snake").permutation(2, 3)):
        visited = torch.vmap(lambda x, order=order: x[expect_permutation(order, 6)])(torch.arange(12).reshape(2, 6))
        assert torch.equal(visited[0], order)


def test_inverse_and_reverse_are_permutations_in_inference_mode_too():
    with torch.inference_mode():
        order = scan_order("snake").permutation(3, 5)
        for made in (order, invert_permutation(order), reverse_permutation(order), torch.randperm(15)):
            assert expect_permutation(made, 15) is made
        with pytest.raises(ShapeError, match="visited twice"):
            expect_permutation(torch.zeros(15, dtype=torch.int64), 15)


def test_values_that_cannot_be_read_are_not_read():
    assert expect_permutation(torch.empty(6, dtype=torch.int64, device="meta"), 6).shape == (6,)
    with FakeTensorMode():
        assert expect_permutation(torch.zeros(6, dtype=torch.int32), 6).dtype == torch.int64
        with pytest.raises(ShapeError, match="shape"):
            expect_permutation(torch.zeros(5, dtype=torch.int32), 6)

    def gather(x, order):
        return x[expect_permutation(order, x.shape[0])]

    x, order = torch.randn(6), torch.randperm(6).int()
    assert torch.equal(torch.compile(gather, fullgraph=True, backend="eager")(x, order), x[order.long()])


@pytest.mark.parametrize(
    ("build", "received"),
    [
        (lambda H, W: [0] * (H * W), "5 of them never visited"),
        (lambda H, W: [*range(W), *range(W)], "3 of them never visited"),
        (lambda H, W: [3 + token for token in range(H * W)], "from 3 to 8"),
        (lambda H, W: [token - 1 for token in range(H * W)], "from -1 to 4"),
        (lambda H, W: list(range(H * W - 1)), r"got \(5,\)"),
        (lambda H, W: torch.arange(H * W).reshape(H, W), r"got \(2, 3\)"),
        (lambda H, W: torch.arange(float(H * W)), "got float32"),
        (lambda H, W: [True] * (H * W), "got bool"),
        (lambda H, W: None, "got object"),
    ],
)
def test_what_a_scan_order_returns_is_checked(build, received):
    order = ScanOrder(f"returns {received}", build)
    for call in (order.permutation, order.inverse, order.reversed().permutation):
        with pytest.raises(ShapeError, match=received):
            call(2, 3)


@pytest.mark.parametrize("integers", [torch.int32, torch.int64])
def test_a_scan_order_may_return_any_integers(integers):
    order = ScanOrder(f"of {integers}", lambda H, W: torch.arange(H * W, dtype=integers).flip(0))
    assert torch.equal(order.permutation(2, 2), torch.tensor([3, 2, 1, 0]))
