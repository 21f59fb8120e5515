"""Moments, standardize, affine: what all norms do, with statistics of the data or with running ones."""

import math
from typing import Any

from jax import lax

from jaxnorm import _checks
from jaxnorm._core import kernels
from jaxnorm._ghosts import standardize_by_ghosts
from jaxnorm._over import Expected
from jaxnorm._placed import along
from jaxnorm._running import advance, advance_by_each, mean_and_var, shown
from jaxnorm._standardize import standardize, standardize_by_own


def arguments(x, axes, scale, bias, epsilon, where, who):
    """What all norms take, checked and in the dimensions of `x`; scale and bias lie along `axes`."""
    return (
        _checks.where(where, x, who),
        along(_checks.affine(scale, x, axes, who, "scale"), x),
        along(_checks.affine(bias, x, axes, who, "bias"), x),
        _checks.number(epsilon, x, who, "epsilon"),
    )


def normalize(x, over, axes, scale, bias, *, epsilon, where, who, dtype=None, implementation=None):
    """A norm without state. `dtype` is that of y, if it is not that of `x`."""
    where, *rest = arguments(x, axes, scale, bias, epsilon, where, who)
    dtype = dtype or x.dtype
    if _by_kernels(x, over, where, dtype, rest[:2], implementation, who):
        named = implementation == "pallas"
        return kernels.normalize_rows(over.axes, x, *rest, centered=over.centered, dtype=dtype, named=named)
    return standardize_by_own(over, dtype, False, x, where, None, *rest)[0]


def _by_kernels(x, over, where, dtype, affine, implementation, who):
    """Whether kernels normalize this, by name or by choice."""
    _checks.implementation(implementation, who)
    features = math.prod(x.shape[a] for a in over.axes)
    if implementation == "xla" or (implementation is None and not kernels.chosen(features)):
        return False
    why = "is for layer and RMS norm" if over.groups else "knows no axis_name" if over.names else None
    why = why or kernels.unserved(over.axes, x, where, dtype, *affine)
    if why and implementation == "pallas":
        raise ValueError(f"{who}: implementation='pallas' {why}. Use implementation='xla', or None to have it chosen.")
    return not why


def normalize_tracking(
    x, state, over, axes, scale, bias, *, train, momentum, ddof, epsilon, where, who, dtype=None, ghost=None,
    apart=None, differentiable=False,
) -> tuple[Any, Any]:  # fmt: skip
    """A norm with running statistics along `axes`, and its new state.

    `ghost`: so many examples, each on their own. `apart`: the axes of examples that each have their own statistics.
    `differentiable`: gradients flow from the new state into `x`.
    """
    dtype = dtype or x.dtype
    _checks.running(state, x, axes, train, momentum, who)
    _checks.ddof(ddof, who)
    momentum = None if momentum is None else _checks.number(momentum, x, who, "momentum", most=1)
    where, *rest = arguments(x, axes, scale, bias, epsilon, where, who)
    if train and state is not None and not over.names:
        _checks.unbiased(where, over.axes, x, ddof, who)
    mean, var = (None, None) if state is None else mean_and_var(state, x, axes)
    if not train:
        return standardize(dtype, x, where, mean, shown(var), *rest), state
    expected = None
    if mean is not None and var is not None and apart is None:
        expected = lax.stop_gradient(Expected(mean, var))
    if ghost is None:
        y, found = standardize_by_own(over, dtype, True, x, where, expected, *rest)
    else:
        y, found = standardize_by_ghosts(ghost, who, over, dtype, x, where, expected, *rest)
    if state is None:
        return y, None
    found = found if differentiable else lax.stop_gradient(found)
    if apart is None:
        return y, advance(state, found, momentum, ddof)
    return y, advance_by_each(state, found, momentum, ddof, apart, over.size(x))
