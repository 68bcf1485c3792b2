"""The CPU kernels in forked children, in a process of its own: other tests leave autograd threads that a fork loses."""

import multiprocessing

import torch
from support import scan_inputs
from torch.utils.data import DataLoader, Dataset

from wavemamba.ops import causal_conv1d, selective_scan, to_haar_map
from wavemamba.ops.products.numba import multiplied


def every_op(seed=0):
    """The kernels of all ops, forward and backward, and that of products, in one number a tensor."""
    inputs = {k: v.float().requires_grad_() for k, v in scan_inputs(2, 40, 192, 4, seed=seed).items()}
    x = causal_conv1d(inputs["u"], inputs["A"], activation="silu", backend="numba")
    y = selective_scan(**inputs | {"u": x}, delta_softplus=True, backend="numba")
    y = to_haar_map(y.unflatten(1, (4, 10))[:, :, :8], 2, "channel", backend="numba")
    product = multiplied(y.detach().flatten(0, 2), inputs["A"].detach(), None)
    gradients = torch.autograd.grad(y.square().sum(), list(inputs.values()))
    return torch.stack([t.double().sum() for t in (*gradients, product)])


def check_child_after_use():
    expected = every_op()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send((torch.get_num_threads(), every_op().tolist())))
    child.start()
    finished = receiver.poll(60)
    if not finished:
        child.kill()
    child.join()
    assert finished, "the forked child hangs"
    assert receiver.recv() == (2, expected.tolist())


class ScanningDataset(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return every_op(index)


def check_data_loader_workers():
    expected = torch.stack([every_op(seed) for seed in range(6)])
    loader = DataLoader(ScanningDataset(), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert torch.equal(torch.cat(list(loader)), expected)
    assert torch.equal(every_op(), expected[0])  # and the parent goes on


if __name__ == "__main__":
    torch.set_num_threads(2)
    check_child_after_use()
    check_data_loader_workers()
    print("done")
