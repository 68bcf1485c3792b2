import gc
import threading

import pytest
import torch

from wavemamba import WaveletMambaBlock, frequency_transform, scan_order
from wavemamba.constants import TensorCache, _cache
from wavemamba.layers.embeddings import resample_position, sincos_position


def test_the_oldest_constants_go_first():
    cache = TensorCache(budget=4 * 8)
    tensors = [cache.keep(key, torch.full((1,), key)) for key in range(4)]
    assert cache.get(0) is tensors[0]  # asked for: now the youngest
    cache.keep(4, torch.full((2,), 4))
    assert [key for key in range(5) if cache.get(key) is not None] == [0, 3, 4]
    assert cache.bytes == 4 * 8
    assert cache.keep(3, torch.zeros(1)) is tensors[3]
    cache.keep(5, torch.zeros(9))
    assert cache.get(5) is None
    assert cache.bytes == 4 * 8


def test_what_was_written_to_is_forgotten():
    cache = TensorCache(budget=100)
    cache.keep("a", torch.zeros(2, dtype=torch.int64)).add_(1)
    assert cache.get("a") is None
    assert cache.bytes == 0
    cache.keep("a", torch.zeros(2, dtype=torch.int64)).add_(1)
    fresh = torch.zeros(2, dtype=torch.int64)
    assert cache.keep("a", fresh) is fresh
    assert cache.bytes == 16


def test_threads_share_a_cache():
    cache, failures = TensorCache(budget=10 * 8), []

    def work(seed):
        generator = torch.Generator().manual_seed(seed)
        for key in torch.randint(0, 20, (400,), generator=generator).tolist():
            tensor = cache.get(key)
            if tensor is None:
                tensor = cache.keep(key, torch.full((1,), key))
            if tensor.item() != key:
                failures.append(key)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert cache.bytes <= 80


def test_many_grids_stay_within_the_budget(monkeypatch):
    monkeypatch.setattr(_cache, "budget", 2**16)
    for height in range(1, 60):
        for order in ("column", "snake"):
            scan_order(order).permutation(height, 16)
    assert 0 < _cache.bytes <= 2**16


def visit(height, width):
    """Ask for everything that is made once for a size."""
    x = torch.zeros(1, height, width, 1)
    for name in ("haar", "dct", "db2", "bior2.2"):
        transform = frequency_transform(name, 1)
        transform.synthesis(transform.analysis(x))
    resample_position(torch.zeros(1, 3, 3, 4), height, width)
    sincos_position(height, width, 4)
    for name in ("hilbert", "window(window=4)", "jpeg"):
        order = scan_order(name)
        order.inverse(height, width)
        order.reversed().permutation(height, width)


@pytest.mark.parametrize("part", ["functions", "block"])
def test_nothing_is_kept_beside_the_budget(monkeypatch, part):
    """Counted over all tensors that are alive, whoever keeps them."""
    monkeypatch.setattr(_cache, "budget", 2**14)
    block = WaveletMambaBlock(2, transform="db2", levels=1, scan="hilbert", layout="mosaic").requires_grad_(False)

    def alive():
        gc.collect()
        dense = (t for t in gc.get_objects() if type(t) is torch.Tensor and t.layout is torch.strided)
        return sum(t.nbytes for t in dense)

    def many(sides):
        for height in sides:
            for width in range(2, 40, 6):
                visit(height, width) if part == "functions" else block(torch.zeros(1, height, width, 2))

    many([2])
    before = alive()
    many(range(4, 44, 4))
    assert alive() - before <= 2**14
    assert 0 < _cache.bytes <= 2**14


def test_a_global_default_device_moves_no_constant():
    with torch.device("meta"):
        assert scan_order("snake").permutation(3, 7).device == torch.device("cpu")
