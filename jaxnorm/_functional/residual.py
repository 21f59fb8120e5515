"""The verbs that add a residual and normalize the sum, which blocks of a Transformer want both of."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Axes, Data, Implementation, Names, Result
from jaxnorm._core.numerics import dtype_of_sum
from jaxnorm._core.reduction import Reduction
from jaxnorm._functional.normalize import normalize, normalize_sum_by_kernels


@_checks.in_other_words
def add_layer_norm(
    x: Data,
    residual: Data,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    axis_name: Names | None = None,
    scale_offset: float = 0.0,
    dtype: DTypeLike | None = None,
    implementation: Implementation = None,
) -> tuple[Result, Result]:
    """Residual connection and layer normalization: the sum, and y of it.

    h = x + residual        y = (o + γ) (h − μ) / √(σ² + ε) + β,    o = `scale_offset`, μ and σ² of h over `axis`

    To XLA that is a sum, and `jn.layer_norm(h, …)`: compiled for a TPU or an H100, 5 passes over the data, forward. A
    kernel takes 4: it reads x and the residual, and writes y and h. With the backward pass 8, not 11.

    Args:
        x: floating point or complex, what a block adds to the residual stream.
        residual: the stream, with the shape of `x`.
        scale, bias, axis, epsilon, where, axis_name, scale_offset: as for `jn.layer_norm`.
        dtype: that of y; None is that of `x`, also where the residual is wider.
        implementation: None or "xla" is the sum, and `jn.layer_norm` with this implementation; "pallas" is one kernel
            each way (the last axes of `x`, no `where`; cuda and tpu). It was compiled and counted, and never timed.

    Returns:
        y and h, with the shape of `x`; h has the dtype that `x` and the residual promote to.

    Raises:
        TypeError: `x` or the residual is integer or boolean. ValueError: an argument does not fit `x`. NameError: an
            unbound name.

    Paper: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture".

    >>> y, h = jn.add_layer_norm(jnp.array([1.0, 1.0]), jnp.array([0.0, 2.0]))
    >>> print(y.round(3), h)
    [-1.  1.] [1. 3.]
    """
    return _add_and_normalize(
        x, residual, scale, bias, axis=axis, axis_name=axis_name, centered=True, epsilon=epsilon, where=where,
        who="add_layer_norm", scale_offset=scale_offset, dtype=dtype, implementation=implementation,
    )  # fmt: skip


@_checks.in_other_words
def add_rms_norm(
    x: Data,
    residual: Data,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    axis_name: Names | None = None,
    scale_offset: float = 0.0,
    dtype: DTypeLike | None = None,
    implementation: Implementation = None,
) -> tuple[Result, Result]:
    """Residual connection and root mean square normalization: the sum, and y of it.

    h = x + residual        y = (o + γ) h / √(⟨|h|²⟩ + ε) + β,    o = `scale_offset`, ⟨·⟩ over `axis`

    Args:
        x: floating point or complex, what a block adds to the residual stream.
        residual: the stream, with the shape of `x`.
        scale, bias, axis, epsilon, where, axis_name, scale_offset: as for `jn.rms_norm`.
        dtype: that of y; None is that of `x`, also where the residual is wider.
        implementation: as for `jn.add_layer_norm`.

    Returns:
        y and h, with the shape of `x`; h has the dtype that `x` and the residual promote to.

    Raises:
        TypeError: `x` or the residual is integer or boolean. ValueError: an argument does not fit `x`. NameError: an
            unbound name.

    Paper: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".

    >>> y, h = jn.add_rms_norm(jnp.array([1.0, 1.0]), jnp.array([2.0, -4.0]))
    >>> print(y.round(3), h)
    [ 1. -1.] [ 3. -3.]
    """
    return _add_and_normalize(
        x, residual, scale, bias, axis=axis, axis_name=axis_name, centered=False, epsilon=epsilon, where=where,
        who="add_rms_norm", scale_offset=scale_offset, dtype=dtype, implementation=implementation,
    )  # fmt: skip


def _add_and_normalize(
    x: Any, residual: Any, scale: Any, bias: Any, *, axis: Axes, axis_name: Names | None, centered: bool,
    epsilon: ArrayLike, where: Any, who: str, scale_offset: float, dtype: Any, implementation: Any,
) -> tuple[Array, Array]:  # fmt: skip
    """y and h of a norm whose scale and bias lie along what it reduces."""
    x = _checks.data(x, who)
    residual = _checks.residual(residual, x, who)
    axes = _checks.axes(axis, x.ndim, f"{who}: axis")
    reduction = Reduction(axes, _checks.names(axis_name, who), centered=centered)
    options = {
        "epsilon": epsilon, "where": where, "who": who, "scale_offset": scale_offset,
        "dtype": _checks.output_dtype(dtype, residual if jnp.iscomplexobj(residual) else x, who),
    }  # fmt: skip
    if implementation == "pallas":
        return normalize_sum_by_kernels(x, residual, reduction, scale, bias, **options)
    both = dtype_of_sum(x, residual)
    h = x.astype(both) + residual.astype(both)
    return normalize(h, reduction, reduction.axes, scale, bias, implementation=implementation, **options), h
