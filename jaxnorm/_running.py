"""Running statistics: exponential averages of batch statistics."""

import jax.numpy as jnp
from jax import lax

from jaxnorm._over import real_dtype, wide_dtype
from jaxnorm._placed import along, back
from jaxnorm._trees import RunningStats


def mean_and_var(state, x, axes):
    """Running statistics in the place of those of `x`: in its dimensions and its dtype of arithmetic."""
    shape = tuple(n if a in axes else 1 for a, n in enumerate(x.shape))
    mean, var = jnp.asarray(state.mean).reshape(shape), jnp.asarray(state.var).reshape(shape)
    return along(mean.astype(wide_dtype(x)), x), along(var.astype(real_dtype(x)), x)


def update(state, found, momentum, ddof):
    """The state after a batch in which `found` was found; unchanged in channels where nothing was."""
    mean, var, count = map(jnp.asarray, state)
    n, pivot, delta, biased = (back(lax.stop_gradient(v).reshape(mean.shape), mean) for v in found)
    # None: equal weight per update, so that the first one replaces the initial state.
    seen = count.astype(biased.dtype)
    keep = seen / (seen + 1) if momentum is None else momentum
    measured = (n > 0) & jnp.isfinite(pivot + delta) & jnp.isfinite(biased)
    spread = measured & (n > ddof)
    unbiased = biased * (n / jnp.where(spread, n - ddof, 1))
    return RunningStats(
        _average(mean, pivot + delta, keep, measured),
        _average(var, unbiased, keep, spread),
        count + measured.any().astype(count.dtype),
    )


def _average(old, new, keep, measured):
    """keep · old + (1 − keep) · new where something was measured, in the dtype of `old`."""
    wide = max(old.dtype, new.dtype, key=lambda dtype: dtype.itemsize)
    keep, new = keep.astype(wide), jnp.where(measured, new, 0).astype(wide)
    moved = keep * old.astype(wide) + (1 - keep) * new
    return jnp.where(measured, moved.astype(old.dtype), old)
