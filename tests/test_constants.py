import threading

import torch

from wavemamba import scan_order
from wavemamba.constants import TensorCache, _cache


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


def test_a_global_default_device_moves_no_constant():
    with torch.device("meta"):
        assert scan_order("snake").permutation(3, 7).device == torch.device("cpu")
