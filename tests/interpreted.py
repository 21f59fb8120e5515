"""Kernels for rows, interpreted on a CPU."""

from contextlib import contextmanager
from functools import partial

import jax
import pytest
from jax.experimental import pallas as pl

from jaxnorm._core import kernels
from jaxnorm._core.kernels import platforms

# XLA for CPUs recomputes a reduction in two fusions, rounded differently: an interpreted kernel is none of its own.
compiled = partial(jax.jit, compiler_options={"xla_disable_hlo_passes": "fusion,cpu-instruction-fusion"})
PLATFORMS = {"triton": "cuda", "mosaic": "tpu", "formula": None}
module_of = platforms._module


@contextmanager
def interpreted(name):
    """Rows go by kernels that are interpreted, or by the formula alone. Yields what to name the implementation."""
    module = PLATFORMS[name] and module_of(PLATFORMS[name])
    if PLATFORMS[name] and module is None:
        pytest.skip(f"this JAX has no {name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platforms, "_module", lambda platform: module)
        patch.setattr(kernels, "chosen", lambda features: True)
        patch.setattr(pl, "pallas_call", partial(pl.pallas_call, interpret=True))
        # Small, for several blocks of few rows.
        if name == "mosaic":
            patch.setattr(module, "_BLOCK", 2**12)
        if name == "triton":
            patch.setattr(module, "_PROCESSORS", 1)
        jax.clear_caches()
        yield "pallas" if module else None
    jax.clear_caches()


def value_and_pull(f):
    """y and the cotangents of all arguments."""

    def run(g, *args):
        y, pull = jax.vjp(f, *args)
        return y, pull(g)

    return compiled(run)
