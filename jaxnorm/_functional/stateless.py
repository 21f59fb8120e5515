"""The verbs without a state: which positions share moments, then standardize, then the affine map."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Axes, Data, Implementation, Names, Result
from jaxnorm._core.moments_about import Statistics
from jaxnorm._core.numerics import real_dtype
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.standardize import standardize_by_given_stats
from jaxnorm._functional.normalize import data_without_kernels, normalize, observations_and_coefficients


@_checks.in_other_words
def instance_norm(
    x: Data,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    channel_axis: int = -1,
    batch_axis: Axes | None = 0,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    axis_name: Names | None = None,
    scale_offset: float = 0.0,
    dtype: DTypeLike | None = None,
    implementation: Implementation = None,
) -> Result:
    """Instance normalization: statistics per example and channel, the same in training and evaluation.

    y = (o + γ) (x − μ) / √(σ² + ε) + β,    o = `scale_offset`, μ and σ² over all axes but `channel_axis` and
    `batch_axis`

    Args:
        x: floating point or complex, any layout.
        scale, bias: γ and β: vectors over the channel axis, scalars, or arrays with the dimensions of `x`, each of
            the same size or 1 (one scale per example: conditional normalization).
        channel_axis: the axis of features: -1 for NHWC, 1 for NCHW.
        batch_axis: one axis of examples, several, or None for a single example.
        epsilon: ε, a number of at least 0.
        where: booleans or non-negative weights, with the dimensions of `x`, each of the same size or 1: what counts in
            the statistics. All positions are normalized with them; an excluded NaN or Inf gives the bias.
        axis_name: mapped axes over which the positions of an example are sharded.
        scale_offset: o, a static number, added to γ in the dtype of arithmetic: 1.0 where a scale is learnt as what
            differs from 1. Without a scale the factor is 1.
        dtype: that of y; None is that of `x`. One that is wider than `x` widens the arithmetic.
        implementation: None or "xla"; kernels are for layer and RMS norm.

    Returns:
        y, with the shape of `x`. Arithmetic is in float32 at least.

    Raises:
        TypeError: `x` is integer or boolean. ValueError: an argument does not fit `x`. NameError: an unbound name.

    Paper: Ulyanov, Vedaldi & Lempitsky 2016, "Instance Normalization: The Missing Ingredient for Fast Stylization".

    >>> x = jnp.array([[[1.0], [3.0]], [[10.0], [30.0]]])  # two examples, two positions, one channel
    >>> print(jn.instance_norm(x).squeeze().round(3))
    [[-1.  1.]
     [-1.  1.]]
    """
    x = _checks.data(x, "instance_norm")
    channel, positions = per_example(x, channel_axis, batch_axis, "instance_norm")
    _checks.positions(positions, x, "instance_norm")
    reduction = Reduction(positions, _checks.names(axis_name, "instance_norm"))
    return normalize(
        x, reduction, (channel,), scale, bias, epsilon=epsilon, where=where, who="instance_norm",
        scale_offset=scale_offset, dtype=dtype, implementation=implementation,
    )  # fmt: skip


@_checks.in_other_words
def layer_norm(
    x: Data,
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
) -> Result:
    """Layer normalization: statistics over the features of each example or position.

    y = (o + γ) (x − μ) / √(σ² + ε) + β,    o = `scale_offset`, μ and σ² over `axis`

    Args:
        x: floating point or complex, any layout.
        scale, bias: γ and β, of the shape of the normalized axes in the order in which `x` has them, scalars, or
            arrays with the dimensions of `x`, each of the same size or 1.
        axis: the normalized axes.
        epsilon: ε, a number of at least 0.
        where: booleans or non-negative weights, with the dimensions of `x`, each of the same size or 1: what counts in
            the statistics. All positions are normalized with them; an excluded NaN or Inf gives the bias.
        axis_name: mapped axes over which the features are sharded.
        scale_offset: o, a static number, added to γ in the dtype of arithmetic: 1.0 where a scale is learnt as what
            differs from 1. Without a scale the factor is 1.
        dtype: that of y; None is that of `x`. One that is wider than `x` widens the arithmetic.
        implementation: "xla", or "pallas" for a kernel each way (the last axes of `x`, no `where`; cuda and tpu); None
            chooses: on an H100 or H200 the kernel where it serves, elsewhere XLA.

    Returns:
        y, with the shape of `x`. Arithmetic is in float32 at least.

    Raises:
        TypeError: `x` is integer or boolean. ValueError: an argument does not fit `x`. NameError: an unbound name.

    Paper: Ba, Kiros & Hinton 2016, "Layer Normalization".

    >>> print(jn.layer_norm(jnp.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])).round(3))
    [[-1.225  0.     1.225]
     [-1.225  0.     1.225]]
    """
    x = _checks.data(x, "layer_norm")
    axes = _checks.axes(axis, x.ndim, "layer_norm: axis")
    reduction = Reduction(axes, _checks.names(axis_name, "layer_norm"))
    return normalize(
        x, reduction, axes, scale, bias, epsilon=epsilon, where=where, who="layer_norm",
        scale_offset=scale_offset, dtype=dtype, implementation=implementation,
    )  # fmt: skip


@_checks.in_other_words
def rms_norm(
    x: Data,
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
) -> Result:
    """Root mean square normalization: layer norm with the mean held at 0.

    y = (o + γ) x / √(⟨|x|²⟩ + ε) + β,    o = `scale_offset`, ⟨·⟩ over `axis`

    Args:
        x: floating point or complex, any layout.
        scale, bias: γ and β, of the shape of the normalized axes in the order in which `x` has them, scalars, or
            arrays with the dimensions of `x`, each of the same size or 1.
        axis: the normalized axes.
        epsilon: ε, a number of at least 0.
        where: booleans or non-negative weights, with the dimensions of `x`, each of the same size or 1: what counts in
            the mean. All positions are normalized with it; an excluded NaN or Inf gives the bias.
        axis_name: mapped axes over which the features are sharded.
        scale_offset: o, a static number, added to γ in the dtype of arithmetic: 1.0 where a scale is learnt as what
            differs from 1. Without a scale the factor is 1.
        dtype: that of y; None is that of `x`. One that is wider than `x` widens the arithmetic.
        implementation: "xla", or "pallas" for a kernel each way (the last axes of `x`, no `where`; cuda and tpu); None
            chooses: on an H100 or H200 the kernel where it serves, elsewhere XLA.

    Returns:
        y, with the shape of `x`. Arithmetic is in float32 at least.

    Raises:
        TypeError: `x` is integer or boolean. ValueError: an argument does not fit `x`. NameError: an unbound name.

    Paper: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".

    >>> print(jn.rms_norm(jnp.array([3.0, -3.0])).round(3))
    [ 1. -1.]
    """
    x = _checks.data(x, "rms_norm")
    axes = _checks.axes(axis, x.ndim, "rms_norm: axis")
    reduction = Reduction(axes, _checks.names(axis_name, "rms_norm"), centered=False)
    return normalize(
        x, reduction, axes, scale, bias, epsilon=epsilon, where=where, who="rms_norm",
        scale_offset=scale_offset, dtype=dtype, implementation=implementation,
    )  # fmt: skip


@_checks.in_other_words
def group_norm(
    x: Data,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    groups: int,
    channel_axis: int = -1,
    batch_axis: Axes | None = 0,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    axis_name: Names | None = None,
    scale_offset: float = 0.0,
    dtype: DTypeLike | None = None,
    implementation: Implementation = None,
) -> Result:
    """Group normalization: statistics per example and block of channels.

    y = (o + γ) (x − μ) / √(σ² + ε) + β,    o = `scale_offset`, μ and σ² over the positions of an example and C / groups
    adjacent channels

    Args:
        x: floating point or complex, any layout.
        scale, bias: γ and β: vectors over the channel axis, scalars, or arrays with the dimensions of `x`, each of
            the same size or 1.
        groups: how many blocks the channels are cut into; 1 is layer norm over all but the batch, C is instance norm.
        channel_axis: the axis of features: -1 for NHWC, 1 for NCHW.
        batch_axis: one axis of examples, several, or None for a single example.
        epsilon: ε, a number of at least 0.
        where: booleans or non-negative weights, with the dimensions of `x`, each of the same size or 1: what counts in
            the statistics. All positions are normalized with them; an excluded NaN or Inf gives the bias.
        axis_name: mapped axes over which the positions of an example are sharded.
        scale_offset: o, a static number, added to γ in the dtype of arithmetic: 1.0 where a scale is learnt as what
            differs from 1. Without a scale the factor is 1.
        dtype: that of y; None is that of `x`. One that is wider than `x` widens the arithmetic.
        implementation: None or "xla"; kernels are for layer and RMS norm.

    Returns:
        y, with the shape of `x`. Arithmetic is in float32 at least.

    Raises:
        TypeError: `x` is integer or boolean. ValueError: an argument does not fit `x`, or the channels do not divide
            into groups. NameError: an unbound name.

    Paper: Wu & He 2018, "Group Normalization".

    >>> print(jn.group_norm(jnp.array([[1.0, 3.0, 10.0, 30.0]]), groups=2).round(3))
    [[-1.  1. -1.  1.]]
    """
    x = _checks.data(x, "group_norm")
    channel, positions = per_example(x, channel_axis, batch_axis, "group_norm")
    _checks.divides(groups, x.shape[channel], "group_norm")
    reduction = Reduction(positions, _checks.names(axis_name, "group_norm"), groups, channel)
    return normalize(
        x, reduction, (channel,), scale, bias, epsilon=epsilon, where=where, who="group_norm",
        scale_offset=scale_offset, dtype=dtype, implementation=implementation,
    )  # fmt: skip


def affine(
    x: Data, scale: ArrayLike | None, bias: ArrayLike | None, *, channel_axis: int, where: ArrayLike | None,
    scale_offset: float, dtype: DTypeLike | None, implementation: Implementation,
) -> Result:  # fmt: skip
    """No normalization: y = (o + γ) x + β."""
    who = "Identity"
    x, output = data_without_kernels(x, dtype, scale_offset, implementation, who)
    channel = _checks.axis(channel_axis, x.ndim, f"{who}: channel_axis")
    data, coefficients = observations_and_coefficients(x, (channel,), scale, bias, 0.0, where, who)
    stats = Statistics(None, None, None, jnp.ones((1,) * x.ndim, real_dtype(x)))
    return standardize_by_given_stats(output, data._replace(where=None), stats, coefficients)


def per_example(x: Array, channel_axis: int, batch_axis: Axes | None, who: str) -> tuple[int, tuple[int, ...]]:
    """The channel axis, and those along which one channel of one example extends."""
    channel = _checks.axis(channel_axis, x.ndim, f"{who}: channel_axis")
    batch = () if batch_axis is None else _checks.axes(batch_axis, x.ndim, f"{who}: batch_axis")
    if channel in batch:
        raise ValueError(f"{who}: channel_axis={channel_axis} is among batch_axis={batch_axis}: x has shape {x.shape}.")
    return channel, tuple(a for a in range(x.ndim) if a != channel and a not in batch)
