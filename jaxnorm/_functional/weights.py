"""The norms of weights: a kernel goes in, and what a layer is to use comes out."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Axes, Data, Result
from jaxnorm._core.maps import root
from jaxnorm._core.moments_about import Statistics
from jaxnorm._core.numerics import wide_dtype
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.sharding import place_like, reshard_as
from jaxnorm._core.standardize import Output, standardize_by_given_stats
from jaxnorm._functional.lengths import squared_length
from jaxnorm._functional.normalize import data_and_output, normalize, observations_and_coefficients
from jaxnorm._types import SingularVectors


@_checks.in_other_words
def weight_norm(
    w: Data,
    scale: ArrayLike | None = None,
    *,
    output_axis: Axes | None = -1,
    epsilon: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
) -> Result:
    """Weight normalization: the length of each output's weights is a parameter of its own.

    ŵ = γ w / √(‖w‖² + ε),    the norm over all axes but `output_axis`

    Args:
        w: a kernel, floating point or complex, any layout.
        scale: γ, a vector over the output axis, a scalar, or an array with the dimensions of `w`; None is 1. To begin
            at `w` itself, γ is its length: `jnp.linalg.norm(w.reshape(-1, w.shape[-1]), axis=0)`.
        output_axis: that of the layer's outputs: -1 in Flax, 0 in PyTorch; several axes; or None for one length of
            all.
        epsilon: ε, a number of at least 0. With 0, too, weights of 0 stay 0.
        dtype: that of ŵ; None is that of `w`.

    Returns:
        ŵ, with the shape of `w`. Arithmetic is in float32 at least.

    Raises:
        TypeError: `w` is integer or boolean. ValueError: an argument does not fit `w`.

    Paper: Salimans & Kingma 2016, "Weight Normalization".

    >>> print(jn.weight_norm(jnp.array([[3.0, 0.0], [4.0, 0.0]])).round(3))
    [[0.6 0. ]
     [0.8 0. ]]
    """
    who = "weight_norm"
    w, output, outputs, reduction = _kernel(w, dtype, output_axis, who)
    data, coefficients = observations_and_coefficients(w, outputs, scale, None, epsilon, None, who)
    uncentered = reduction._replace(centered=False)
    return standardize_by_given_stats(output, data, squared_length(uncentered, data), coefficients)


@_checks.in_other_words
def standardize_weights(
    w: Data,
    scale: ArrayLike | None = None,
    *,
    output_axis: Axes | None = -1,
    epsilon: ArrayLike = 1e-5,
    dtype: DTypeLike | None = None,
) -> Result:
    """Weight standardization: each output's weights have mean 0 and variance 1.

    ŵ = γ (w − μ) / √(σ² + ε),    μ and σ² over all axes but `output_axis`

    The scaled form of networks without norms is γ = gain / √N, with N weights for each output: then ŵ has length
    1 and a layer keeps the variance of its input.

    Args:
        w: a kernel, floating point or complex, any layout.
        scale: γ, a vector over the output axis, a scalar, or an array with the dimensions of `w`; None is 1.
        output_axis: that of the layer's outputs: -1 in Flax, 0 in PyTorch; several axes; or None for one of all.
        epsilon: ε, a number of at least 0. With 0, too, weights that are one number become 0.
        dtype: that of ŵ; None is that of `w`.

    Returns:
        ŵ, with the shape of `w`. Arithmetic is in float32 at least.

    Raises:
        TypeError: `w` is integer or boolean. ValueError: an argument does not fit `w`.

    Papers: Qiao et al. 2019, "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization"; Brock,
    De & Smith 2021, "Characterizing signal propagation to close the performance gap in unnormalized ResNets".

    >>> print(jn.standardize_weights(jnp.array([[1.0, 5.0], [3.0, 5.0]])).round(3))
    [[-1.  0.]
     [ 1.  0.]]
    """
    who = "standardize_weights"
    w, output, outputs, reduction = _kernel(w, dtype, output_axis, who)
    return normalize(
        w, reduction, outputs, scale, None, epsilon=epsilon, where=None, who=who, dtype=output.dtype,
        implementation="xla",
    )  # fmt: skip


@_checks.in_other_words
def spectral_norm(
    w: Data,
    state: SingularVectors | None = None,
    steps: int = 1,
    *,
    output_axis: Axes | None = -1,
    epsilon: ArrayLike = 0.0,
    dtype: DTypeLike | None = None,
) -> tuple[Result, SingularVectors]:
    """Spectral normalization: the largest singular value of a kernel becomes 1, by power iteration.

    v ← Wᵀu / ‖Wᵀu‖,    u ← W v / ‖W v‖,    σ = uᵀ W v,    ŵ = w / √(σ² + ε),    W the outputs by all else

    Gradients flow through σ with u and v held, as in the paper.

    Args:
        w: a kernel, real floating point, any layout.
        state: `SingularVectors` of the last call; None begins with a vector drawn from the normal distribution, always
            the same one. A loop that is compiled wants the state of a call before it.
        steps: power iterations in this call, a static int: 1 in training, 0 in evaluation, by a state; a dozen to begin
            with.
        output_axis: that of the layer's outputs: -1 in Flax, 0 in PyTorch; several axes; or None for all of it, which
            is a division by its length.
        epsilon: ε, a number of at least 0. With 0, too, weights of 0 stay 0.
        dtype: that of ŵ; None is that of `w`.

    Returns:
        ŵ, with the shape of `w`, and the new state. Arithmetic is in float32 at least.

    Raises:
        TypeError: `w` is integer, boolean or complex. ValueError: the state or another argument does not fit `w`.

    Paper: Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks".

    >>> w, state = jn.spectral_norm(jnp.array([[3.0, 0.0], [0.0, 1.0]]), steps=20)
    >>> print(w.round(3))
    [[1.    0.   ]
     [0.    0.333]]
    """
    y, state, _ = spectral(w, state, steps, output_axis, epsilon, dtype, "spectral_norm")
    return y, state


def spectral(
    w: Any, state: SingularVectors | None, steps: int, output_axis: Axes | None, epsilon: ArrayLike, dtype: Any,
    who: str,
) -> tuple[Array, SingularVectors, Array]:  # fmt: skip
    """ŵ, the new state, and σ."""
    w, output, outputs, over_inputs = _kernel(w, dtype, output_axis, who)
    _checks.real(w, who, "singular values")
    steps = _checks.steps(steps, state, who)
    data, coefficients = observations_and_coefficients(w, (), None, None, epsilon, None, who)
    over_outputs = Reduction(outputs)
    _checks.singular_vectors(state, over_inputs.shape(w), over_outputs.shape(w), who)
    u, v = _power_iteration(lax.stop_gradient(w), state, steps, over_inputs, over_outputs)
    sigma = (u * over_inputs.sum(w.astype(u.dtype) * v)).sum(keepdims=True)
    y = standardize_by_given_stats(output, data, Statistics(None, None, None, sigma**2), coefficients)
    new = SingularVectors(u, v)
    new = new if state is None else jax.tree.map(lambda new, old: reshard_as(new.astype(old.dtype), old), new, state)
    return y, new, sigma.reshape(())


def _power_iteration(
    w: Array, state: SingularVectors | None, steps: int, over_inputs: Reduction, over_outputs: Reduction
) -> SingularVectors:
    """The singular vectors after so many steps, in the dtype of arithmetic."""
    w = w.astype(wide_dtype(w))

    def step(_: Any, vectors: SingularVectors) -> SingularVectors:
        v = _unit(over_outputs.sum(w * vectors.u), vectors.v)
        return SingularVectors(_unit(over_inputs.sum(w * v), vectors.u), v)

    if state is None:
        u = jax.random.normal(jax.random.key(0), over_inputs.shape(w), w.dtype)
        v = jnp.ones(over_outputs.shape(w), w.dtype)
        state = SingularVectors(_unit(u, u), _unit(v, v))
    vectors = SingularVectors(*(place_like(v.astype(w.dtype), w) for v in lax.stop_gradient(state)))
    # After a step they lie on a mesh as the kernel does, which the carry of a loop has to.
    vectors = step(0, vectors) if steps else vectors
    return lax.fori_loop(1, steps, step, vectors) if steps > 1 else vectors


def _unit(v: Array, old: Array) -> Array:
    """v / ‖v‖, or the old vector where there is no direction: weights that are 0 or NaN change no state."""
    largest = jnp.abs(v).max(initial=0)
    usable = (largest > 0) & jnp.isfinite(largest)
    # By the largest, no square overflows, and none of all is 0.
    v = v / jnp.where(usable, largest, 1)
    return jnp.where(usable, v / root(jnp.where(usable, (v * v).sum(), 1)), old)


def _kernel(w: Any, dtype: Any, output_axis: Axes | None, who: str) -> tuple[Array, Output, tuple[int, ...], Reduction]:
    """The kernel, what ŵ is to be, the axes of its outputs, and the reduction over all others."""
    w, output = data_and_output(_checks.data(w, who, "w"), dtype, 0.0, who)
    outputs = () if output_axis is None else _checks.axes(output_axis, w.ndim, f"{who}: output_axis", "w")
    return w, output, outputs, Reduction(tuple(a for a in range(w.ndim) if a not in outputs))
