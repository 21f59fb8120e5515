"""Norms of weights as Flax's wrappers have them: dtypes, shapes of vectors, and which weights."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jaxtyping import Array

from jaxnorm._functional.weights import spectral, standardize_weights, weight_norm
from jaxnorm._types import SingularVectors


def is_spectral(norm: Any, w: Array) -> bool:
    """Whether a wrapper normalizes these weights: with two axes or more they are a matrix of all others by the last."""
    if w.ndim <= 1 or norm.n_steps < 1:
        return False
    if w.ndim > 2 and norm.error_on_non_matrix:
        raise ValueError(
            f"{type(norm).__name__}: Input is {w.ndim}D but error_on_non_matrix is True: the weights have shape "
            f"{w.shape}. Without that they are a matrix of {w.size // w.shape[-1]} by {w.shape[-1]}."
        )
    return True


def spectral_weights(norm: Any, w: Array, u: Array) -> tuple[Array, Array, Array]:
    """ŵ, u as Flax keeps it, of shape (1, outputs), and σ."""
    dtype = canonicalize_dtype(w, u, dtype=norm.dtype)
    begin = SingularVectors(u.reshape([1] * (w.ndim - 1) + [-1]), jnp.zeros((*w.shape[:-1], 1), u.dtype))
    y, state, sigma = spectral(w, begin, norm.n_steps, -1, 0.0, dtype, type(norm).__name__)
    return y, state.u.reshape(u.shape), sigma.astype(u.dtype)


def scale_shape(norm: Any, w: Array) -> list[int]:
    """The shape of the scale of these weights: their sizes along the feature axes."""
    return [w.shape[a] for a in _feature_axes(norm, w)]


def weights_of_length(norm: Any, w: Array, scale: Array | None) -> Array:
    """ŵ by a scale of `scale_shape`, or without one."""
    dtype = canonicalize_dtype(w, *([] if scale is None else [scale]), dtype=norm.dtype)
    return weight_norm(w, scale, output_axis=_feature_axes(norm, w), epsilon=norm.epsilon, dtype=dtype)


def _feature_axes(norm: Any, w: Array) -> tuple[int, ...]:
    """The feature axes in order, each once, as Flax has them."""
    axes = () if norm.feature_axes is None else norm.feature_axes
    return tuple(sorted({a % w.ndim for a in (axes if isinstance(axes, Iterable) else (axes,))}))


def standardized_kernel(conv: Any, kernel: Array, gain: Array | None) -> Array:
    """The kernel of a `StdConv`; with a gain, in the scaled form."""
    if gain is not None:
        gain = gain / (kernel.size // kernel.shape[-1]) ** 0.5
    return standardize_weights(kernel, gain, epsilon=conv.epsilon)
