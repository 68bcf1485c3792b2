"""Butcher tableaus of the explicit Runge-Kutta methods that are stepped here rather than in torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: `k_i = f(t + c_i h, x + h sum_j a_ij k_j)`, `x' = x + h sum_i b_i k_i`."""

    order: int
    nodes: tuple[float, ...]
    """`c`."""
    stages: tuple[tuple[float, ...], ...]
    """Rows of `a`, the first empty."""
    weights: tuple[float, ...]
    """`b`."""
    errors: tuple[float, ...] = ()
    """`b` minus the weights of the embedded method; empty where there is none."""

    def slopes(self, field: Callable[[int, Tensor], Tensor], x: Tensor, h: Tensor | float) -> list[Tensor]:
        """The stages `k_i`; `field(i, x)` evaluates at node `i`, `h` broadcasts over `x`."""
        slopes = [field(0, x)]
        for i in range(1, len(self.nodes)):
            slopes.append(field(i, advance(x, h, combine(self.stages[i], slopes))))
        return slopes


def advance(x: Tensor, h: Tensor | float, slope: Tensor) -> Tensor:
    """`x + h * slope` in one pass; a tensor `h` broadcasts over `x`."""
    return torch.addcmul(x, h, slope) if isinstance(h, Tensor) else torch.add(x, slope, alpha=h)


def combine(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """`sum_i weights_i slopes_i`, leaving out zeros."""
    (weight, total), *others = ((w, k) for w, k in zip(weights, slopes, strict=False) if w != 0)
    total = total if weight == 1 else weight * total
    for weight, slope in others:
        total = torch.add(total, slope, alpha=weight)
    return total


EXPLICIT: dict[str, Tableau] = {
    "euler": Tableau(1, (0.0,), ((),), (1.0,)),
    "midpoint": Tableau(2, (0.0, 1 / 2), ((), (1 / 2,)), (0.0, 1.0)),
    "heun2": Tableau(2, (0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2)),
    "heun3": Tableau(3, (0.0, 1 / 3, 2 / 3), ((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4)),
    # Kutta's 3/8 rule, which is what torchdiffeq calls rk4.
    "rk4": Tableau(
        4,
        (0.0, 1 / 3, 2 / 3, 1.0),
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    ),
}

# Each evaluates its last stage at the end of the step, so that it is the first of the next. A row here is a solver.
EMBEDDED: dict[str, Tableau] = {
    # Bogacki and Shampine, 1989.
    "bosh3": Tableau(
        3,
        (0.0, 1 / 2, 3 / 4, 1.0),
        ((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        (2 / 9, 1 / 3, 4 / 9, 0.0),
        (2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    ),
    # Dormand and Prince, 1980.
    "dopri5": Tableau(
        5,
        (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
        (
            35 / 384 - 5179 / 57600,
            0.0,
            500 / 1113 - 7571 / 16695,
            125 / 192 - 393 / 640,
            -2187 / 6784 + 92097 / 339200,
            11 / 84 - 187 / 2100,
            -1 / 40,
        ),
    ),
}


def runge_kutta_step(method: Tableau) -> Callable[[Callable[[float, Tensor], Tensor], Tensor, float, float], Tensor]:
    """One step of an explicit method: `(slope(t, x), x, now, after) -> x at after`."""

    def step(slope: Callable[[float, Tensor], Tensor], x: Tensor, now: float, after: float) -> Tensor:
        h = after - now
        # The last node is the end itself, not the rounding of a sum that may pass it.
        nodes = [after if c == 1.0 else now + c * h for c in method.nodes]
        slopes = method.slopes(lambda i, state: slope(nodes[i], state), x, h)
        return advance(x, h, combine(method.weights, slopes))

    return step
