"""Compile the CPU kernels ahead of their first use."""

from __future__ import annotations

from wavemamba.errors import BackendUnavailable
from wavemamba.ops.dispatch.availability import INSTALLED, numba_is_switched_off
from wavemamba.ops.dispatch.backend import NUMBA_SWITCHED_OFF
from wavemamba.ops.dispatch.kernel_op import kernels
from wavemamba.ops.dispatch.tables import tables
from wavemamba.ops.products import mkl_leaves_vectors_idle


def warm_up() -> None:
    """Compile every CPU kernel, or load it from the disk cache; otherwise the first call of each op does.

    Some seconds where nothing is cached yet, a fraction of one afterwards. Useful before timing, before forking
    workers, and when building a container image.

    Raises:
        BackendUnavailable: numba is not installed, or switched off.
    """
    if not INSTALLED["numba"]:
        raise BackendUnavailable("warm_up: expected numba, which is not installed; pip install numba")
    if numba_is_switched_off():
        raise BackendUnavailable(f"warm_up: expected a numba that compiles; {NUMBA_SWITCHED_OFF}")
    for op, table in tables().items():
        if any(backend.name == "numba" for backend in table):
            kernels(op, "numba")
    kernels("fused", "numba")
    if mkl_leaves_vectors_idle():
        kernels("products", "numba")
