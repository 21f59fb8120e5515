"""Moments, standardize, affine: what all norms do, with statistics of the data or with running ones."""

import math
from collections.abc import Sequence
from typing import Any

from jax import lax
from jaxtyping import Array, ArrayLike

from jaxnorm import _checks
from jaxnorm._core import kernels
from jaxnorm._core.ghosts import standardize_by_ghosts
from jaxnorm._core.moments_about import Observations, Statistics
from jaxnorm._core.numerics import wide_dtype
from jaxnorm._core.pivot import Expected
from jaxnorm._core.portable import is_portable
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.sharding import place_like
from jaxnorm._core.standardize import Coefficients, Output, standardize_by_given_stats, standardize_by_own_stats
from jaxnorm._state.running import advance, advance_by_examples, mean_and_var, nan_if_negative
from jaxnorm._types import RunningState


def observations_and_coefficients(
    x: Array, feature_axes: Sequence[int], scale: Any, bias: Any, epsilon: ArrayLike, where: Any, who: str
) -> tuple[Observations, Coefficients]:
    """The arguments of all norms, checked and in the dimensions of `x`; scale and bias lie along
    `feature_axes`."""
    return Observations(x, _checks.where(where, x, who)), Coefficients(
        place_like(_checks.affine(scale, x, feature_axes, who, "scale"), x),
        place_like(_checks.affine(bias, x, feature_axes, who, "bias"), x),
        _checks.number(epsilon, x, who, "epsilon"),
    )


def data_and_output(x: Array, dtype: Any, scale_offset: Any, who: str) -> tuple[Array, Output]:
    """`x`, widened where its arithmetic would be narrower than y, and what y is to be, by default of the same dtype."""
    output = Output(_checks.output_dtype(dtype, x, who), _checks.scale_offset(scale_offset, who))
    too_narrow = wide_dtype(output).itemsize > wide_dtype(x).itemsize
    return x.astype(output.dtype) if too_narrow else x, output


def data_without_kernels(
    x: Any, dtype: Any, scale_offset: Any, implementation: str | None, who: str
) -> tuple[Array, Output]:
    """`x` and what y is to be, for a norm that has no kernels."""
    _checks.without_kernels(implementation, who)
    return data_and_output(_checks.data(x, who), dtype, scale_offset, who)


def normalize(
    x: Array, reduction: Reduction, feature_axes: tuple[int, ...], scale: Any, bias: Any, *, epsilon: ArrayLike,
    where: Any, who: str, scale_offset: float = 0.0, dtype: Any = None, implementation: str | None = None,
) -> Array:  # fmt: skip
    """A norm without state, whose scale and bias lie along `feature_axes`."""
    x, output = data_and_output(x, dtype, scale_offset, who)
    data, coefficients = observations_and_coefficients(x, feature_axes, scale, bias, epsilon, where, who)
    # A kernel wants the scale along what is reduced: layer and RMS norm. For those it was timed.
    in_rows = not reduction.groups and set(feature_axes) <= set(reduction.axes)
    if not in_rows:
        _checks.without_kernels(implementation, who)
    elif _by_kernels(reduction, data, coefficients, output.dtype, implementation, who):
        return _by_rows(reduction, data, None, coefficients, output, named=implementation == "pallas")[0]
    return standardize_by_own_stats(reduction, output, False, data, None, coefficients)[0]


def normalize_sum_by_kernels(
    x: Array, residual: Array, reduction: Reduction, scale: Any, bias: Any, *, epsilon: ArrayLike, where: Any,
    who: str, scale_offset: float, dtype: Any,
) -> tuple[Array, Array]:  # fmt: skip
    """y and h = x + residual, in one kernel."""
    output = Output(dtype, _checks.scale_offset(scale_offset, who))
    data, coefficients = observations_and_coefficients(x, reduction.axes, scale, bias, epsilon, where, who)
    _by_kernels(reduction, data, coefficients, dtype, "pallas", who)
    why = kernels.unserved(reduction.axes, residual, None, dtype, widest=kernels.WIDEST_SUM)
    _checks.implementation("pallas", who, why and f"{why} (its residual)")
    y, h = _by_rows(reduction, data, residual, coefficients, output, named=True)
    return y, h


def _by_rows(
    reduction: Reduction, data: Observations, residual: Array | None, coefficients: Coefficients, output: Output,
    *, named: bool,
) -> list[Array]:  # fmt: skip
    options = {"centered": reduction.centered, "output": output, "named": named}
    return kernels.normalize_rows(reduction.axes, data.x, residual, coefficients, **options)


def _by_kernels(
    reduction: Reduction,
    data: Observations,
    coefficients: Coefficients,
    dtype: Any,
    implementation: str | None,
    who: str,
) -> bool:
    """Whether kernels normalize rows, by name or by choice."""
    _checks.implementation(implementation, who)
    x, (scale, bias, _) = data.x, coefficients
    features = math.prod(x.shape[a] for a in reduction.axes)
    if implementation == "xla" or (implementation is None and (is_portable() or not kernels.chosen(features))):
        return False
    why = "knows no axis_name" if reduction.axis_names else None
    why = why or kernels.unserved(reduction.axes, x, data.where, dtype, scale, bias)
    _checks.implementation(implementation, who, why)
    return not why


def normalize_tracking(
    x: Array, state: Any, reduction: Reduction, feature_axes: tuple[int, ...], scale: Any, bias: Any, *, train: bool,
    momentum: Any, ddof: int, epsilon: ArrayLike, where: Any, who: str, scale_offset: float = 0.0, dtype: Any = None,
    implementation: str | None = None,
    virtual_batch_size: int | None = None, example_axes: tuple[int, ...] | None = None, differentiable: bool = False,
) -> tuple[Array, RunningState | None]:  # fmt: skip
    """A norm with running statistics along `feature_axes`, where scale and bias lie; and its new state.

    `virtual_batch_size`: so many examples, each on their own. `example_axes`: those of examples that each have their
    own statistics. `differentiable`: gradients flow from the new state into `x`.
    """
    _checks.without_kernels(implementation, who)
    x, output = data_and_output(x, dtype, scale_offset, who)
    momentum, running = running_arguments(x, where, state, reduction, feature_axes, train, momentum, ddof, who)
    data, coefficients = observations_and_coefficients(x, feature_axes, scale, bias, epsilon, where, who)
    if not train:
        return standardize_by_given_stats(output, data, running, coefficients), state
    expected = None
    if state is not None and example_axes is None:
        expected = lax.stop_gradient(Expected(running.pivot, running.var))
    if virtual_batch_size is None:
        y, stats = standardize_by_own_stats(reduction, output, True, data, expected, coefficients)
    else:
        _checks.virtual_batch_size(virtual_batch_size, reduction, x, who)
        y, stats = standardize_by_ghosts(virtual_batch_size, reduction, output, data, expected, coefficients)
    if state is None:
        return y, None
    stats: Any = stats if differentiable else lax.stop_gradient(stats)
    if example_axes is None:
        return y, advance(state, stats, momentum, ddof)
    return y, advance_by_examples(state, stats, momentum, ddof, example_axes, reduction.size(x))


def running_arguments(
    x: Array, where: Any, state: Any, reduction: Reduction, feature_axes: tuple[int, ...], train: bool, momentum: Any,
    ddof: int, who: str,
) -> tuple[Any, Any]:  # fmt: skip
    """The momentum, checked, and running statistics along `feature_axes` as those of `x`, if there is a state."""
    _checks.running(state, x, feature_axes, train, momentum, who)
    _checks.ddof(ddof, who)
    momentum = _checks.momentum(momentum, x, who)
    if train and state is not None and not reduction.axis_names:
        _checks.unbiased(_checks.where(where, x, who), reduction.axes, x, ddof, who)
    if state is None:
        return momentum, None
    mean, var = mean_and_var(state, x, feature_axes)
    return momentum, Statistics(None, mean, None, nan_if_negative(var))


def state_after(state: Any, stats: Statistics, momentum: Any, ddof: int) -> RunningState | None:
    """The state after a batch of these statistics, if there is one; it has no derivative in the data."""
    return None if state is None else advance(state, lax.stop_gradient(stats), momentum, ddof)
