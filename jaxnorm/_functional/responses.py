"""The verbs that normalize responses of filters without taking their mean off."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Axes, Data, Implementation, Names, Result
from jaxnorm._core.maps import inverse_deviation, mapped, root
from jaxnorm._core.numerics import masked, nan_if_infinite, real_product, reciprocal, weighted
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.sharding import gather_axis, place_like
from jaxnorm._core.statistics import statistics
from jaxnorm._functional.normalize import data_without_kernels, observations_and_coefficients
from jaxnorm._functional.stateless import per_example


@_checks.in_other_words
def filter_response_norm(
    x: Data,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    threshold: ArrayLike | None = None,
    *,
    channel_axis: int = -1,
    batch_axis: Axes | None = 0,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    axis_name: Names | None = None,
    scale_offset: float = 0.0,
    dtype: DTypeLike | None = None,
    implementation: Implementation = None,
) -> Result:
    """Filter response normalization, and its thresholded linear unit: mean squares per example and channel.

    y = max((o + γ) x / √(⟨|x|²⟩ + ε) + β, τ),    o = `scale_offset`, mean over all axes but `channel_axis` and
    `batch_axis`

    Args:
        x: floating point, any layout.
        scale, bias: γ and β, as for `jn.instance_norm`.
        threshold: τ, a vector over the channel axis, a scalar, or an array with the dimensions of `x`; None for no
            unit, and then `x` may be complex.
        channel_axis, batch_axis, where, axis_name, scale_offset, dtype, implementation: as for `jn.instance_norm`.
        epsilon: ε, a number of at least 0.

    Returns:
        y, with the shape of `x`. Arithmetic is in float32 at least. An excluded NaN or Inf gives max(β, τ).

    Raises:
        TypeError: `x` is integer or boolean, or complex with a threshold. ValueError: an argument does not fit `x`.
        NameError: an unbound name.

    Paper: Singh & Krishnan 2020, "Filter Response Normalization Layer: Eliminating Batch Dependence in the Training of
    Deep Neural Networks".

    >>> x = jnp.array([[[3.0], [-3.0]]])  # one example, two positions, one channel
    >>> print(jn.filter_response_norm(x, threshold=0.0).squeeze().round(3))
    [1. 0.]
    """
    who = "filter_response_norm"
    x, output = data_without_kernels(x, dtype, scale_offset, implementation, who)
    channel, positions = per_example(x, channel_axis, batch_axis, who)
    _checks.positions(positions, x, who)
    data, coefficients = observations_and_coefficients(x, (channel,), scale, bias, epsilon, where, who)
    if threshold is not None:
        _checks.real(x, who, "a threshold")
        threshold = place_like(_checks.affine(threshold, x, (channel,), who, "threshold"), x)
    stats = statistics(Reduction(positions, _checks.names(axis_name, who), centered=False), data)
    return mapped(_filter_response, output, data, coefficients, stats.var + coefficients.epsilon, threshold)


def _filter_response(x: Array, affine: Any, mean_square: Array, threshold: Array | None) -> Array:
    y = affine(x * inverse_deviation(mean_square).astype(x.dtype))
    return y if threshold is None else jnp.maximum(y, threshold.astype(y.dtype))


@_checks.in_other_words
def global_response_norm(
    x: Data,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    channel_axis: int = -1,
    batch_axis: Axes | None = 0,
    epsilon: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    axis_name: Names | None = None,
    scale_offset: float = 0.0,
    dtype: DTypeLike | None = None,
    implementation: Implementation = None,
) -> Result:
    """Global response normalization: what a channel's length is beside those of all channels of an example.

    G = √(Σ |x|²),    y = (o + γ) x G / (⟨G⟩ + ε) + β + x,    o = `scale_offset`, the sum over all axes but
    `channel_axis` and `batch_axis`, the mean over channels

    Args:
        x: floating point or complex, any layout.
        scale, bias: γ and β, as for `jn.instance_norm`; the paper begins with 0 for both, which is y = x.
        channel_axis, batch_axis, where, axis_name, scale_offset, dtype, implementation: as for `jn.instance_norm`.
            What `where` excludes is in no sum.
        epsilon: ε, a number of at least 0.

    Returns:
        y, with the shape of `x`. Arithmetic is in float32 at least. An excluded NaN or Inf gives the bias.

    Raises:
        TypeError: `x` is integer or boolean. ValueError: an argument does not fit `x`. NameError: an unbound name.

    Paper: Woo et al. 2023, "ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders".

    >>> x = jnp.array([[[3.0, 5.0], [4.0, 0.0]]])  # two positions; each channel has length 5
    >>> print(jn.global_response_norm(x).round())
    [[[ 6. 10.]
      [ 8.  0.]]]
    """
    who = "global_response_norm"
    x, output = data_without_kernels(x, dtype, scale_offset, implementation, who)
    channel, positions = per_example(x, channel_axis, batch_axis, who)
    data, coefficients = observations_and_coefficients(x, (channel,), scale, bias, epsilon, where, who)
    stats = statistics(Reduction(positions, _checks.names(axis_name, who), centered=False), data)
    length = root(nan_if_infinite(stats.count * stats.var))
    share = length * reciprocal(length.mean(channel, keepdims=True) + coefficients.epsilon)
    return mapped(_global_response, output, data, coefficients, share)


def _global_response(x: Array, affine: Any, share: Array) -> Array:
    return affine(x * share.astype(x.dtype)) + x


@_checks.in_other_words
def local_response_norm(
    x: Data,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    size: int,
    alpha: ArrayLike = 1e-4,
    beta: ArrayLike = 0.75,
    k: ArrayLike = 1.0,
    channel_axis: int = -1,
    where: ArrayLike | None = None,
    scale_offset: float = 0.0,
    dtype: DTypeLike | None = None,
    implementation: Implementation = None,
) -> Result:
    """Local response normalization: each channel beside its neighbours at the same position.

    y = γ x / (k + α/n Σ |x|²)^β,    the sum over the n channels from c − ⌊(n − 1)/2⌋ to c + ⌈(n − 1)/2⌉ that there are

    That is ONNX's meaning, Caffe's and PyTorch's (but where n is even, PyTorch's window lies one channel lower). That
    of AlexNet's paper and TensorFlow has α in the place of α/n: give them n times their α.

    Args:
        x: floating point or complex, any layout.
        scale, bias: γ, to which `scale_offset` is added, and what is added to y; ordinarily there are none.
        size: n, the number of channels in a window.
        alpha, beta, k: α, β and k, numbers of at least 0.
        channel_axis: the axis of features: -1 for NHWC, 1 for NCHW. They may not be sharded over mapped axes.
        where, scale_offset, dtype, implementation: as for `jn.layer_norm`. What `where` excludes is in no sum.

    Returns:
        y, with the shape of `x`. Arithmetic is in float32 at least.

    Raises:
        TypeError: `x` is integer or boolean. ValueError: an argument does not fit `x`, or `size` is no positive int.

    Paper: Krizhevsky, Sutskever & Hinton 2012, "ImageNet Classification with Deep Convolutional Neural Networks".

    >>> x = jnp.ones((1, 3))  # squares of neighbours add up to 2, 3 and 2
    >>> print(jn.local_response_norm(x, size=3, alpha=3.0, beta=1.0, k=2.0).round(3))
    [[0.25 0.2  0.25]]
    """
    who = "local_response_norm"
    size = _checks.window(size, who)
    x, output = data_without_kernels(x, dtype, scale_offset, implementation, who)
    channel = _checks.axis(channel_axis, x.ndim, f"{who}: channel_axis")
    data, coefficients = observations_and_coefficients(x, (channel,), scale, bias, 0.0, where, who)
    alpha, beta, k = (_checks.number(v, x, who, name) for v, name in ((alpha, "alpha"), (beta, "beta"), (k, "k")))
    return mapped(_Window(channel, size), output, data, coefficients, data.where, alpha / size, beta, k)


class _Window(NamedTuple):
    """Local response normalization over so many channels; a value, as formulas are."""

    channel: int
    size: int

    def __call__(self, x: Array, affine: Any, where: Array | None, share: Array, beta: Array, k: Array) -> Array:
        window = [self.size if a == self.channel else 1 for a in range(x.ndim)]
        padding = [((n - 1) // 2, n // 2) for n in window]
        # Whole along the channels: no window reaches over to another device.
        squares = gather_axis(weighted(masked(real_product(x, x), where), where), self.channel)
        zero = np.zeros((), squares.dtype)
        total = lax.reduce_window(squares, zero, lax.add, window, [1] * x.ndim, padding)
        base = nan_if_infinite(k + share * place_like(total, x))
        # Where it is 0, so is all that counts.
        return affine(x * (jnp.where(base == 0, 1, base) ** -beta).astype(x.dtype))
