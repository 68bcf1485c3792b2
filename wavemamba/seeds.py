"""One seed scheme: every stream of randomness is a function of what it is for."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any mixture of numbers and words; the same on every machine and Python.

    Neighbouring inputs give unrelated seeds, so `derive_seed(seed, "noise", step)` may be used for consecutive steps.

    Args:
        parts: what the randomness is for, for example `(seed, "noise", step)`.

    Returns:
        An integer in [0, 2**63).
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), "little") >> 1


def generator_for(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))
