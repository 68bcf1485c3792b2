"""Cost per token from 256 to 65,536 tokens: the Mamba mixer against self-attention of the same width.

python benchmarks/mixer_growth.py
python benchmarks/mixer_growth.py --longest 16384 --rounds 3

With memory kept in the process, as docs/performance.md explains it (the same for model.py, cpu-model-kept-memory):

export MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=4000000000
python benchmarks/mixer_growth.py --name cpu-growth-kept-memory
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import refuse_wrong, report, time_cases
from torch import nn

from wavemamba import MambaMixer, ops
from wavemamba.layers import SelfAttention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--longest", type=int, default=65536, help="tokens of the longest sequence")
    parser.add_argument(
        "--longest-attention", type=int, default=16384, help="where attention stops, which is quadratic"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--name", default="cpu-growth", help="of the JSON under benchmarks/results")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    ops.warm_up()
    torch.manual_seed(0)
    mixer, attention = MambaMixer(options.dim).eval(), SelfAttention(options.dim, options.heads).eval()
    check(mixer, options.dim)
    lengths = [256 * 4**k for k in range(9) if 256 * 4**k <= options.longest]
    # The short ones are called several times in a row, so that every timing covers enough work.
    repeats = {length: max(1, 4096 // length) for length in lengths}
    cases = {("mixer", n): run(mixer, n, options.dim, repeats[n]) for n in lengths}
    cases |= {
        ("attention", n): run(attention, n, options.dim, repeats[n]) for n in lengths if n <= options.longest_attention
    }
    seconds = time_cases(cases, rounds=options.rounds)
    per_token = {(name, n): value / (n * repeats[n]) * 1e6 for (name, n), value in seconds.items()}
    rows: list[dict[str, Any]] = [
        {
            "tokens": length,
            "mixer, us a token": per_token["mixer", length],
            "attention, us a token": per_token.get(("attention", length)),
            "mixer against 256": per_token["mixer", length] / per_token["mixer", 256],
        }
        for length in lengths
    ]
    report(options.name, rows, dim=options.dim, heads=options.heads, rounds=options.rounds)


def check(mixer: MambaMixer, dim: int) -> None:
    x = torch.randn(1, 300, dim)
    with torch.no_grad():
        actual = mixer(x)
        with ops.use_backend("reference"):
            refuse_wrong("mixer", actual, mixer.double()(x.double()), 1e-5)
    mixer.float()


def run(layer: nn.Module, length: int, dim: int, repeats: int) -> Any:
    x = torch.randn(1, length, dim)

    @torch.inference_mode()
    def call() -> None:
        for _ in range(repeats):
            layer(x)

    return call


if __name__ == "__main__":
    main()
