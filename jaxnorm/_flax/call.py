"""Calls of Flax's norms by the core: which mask, which dtypes, which state.

`norm` is a module of flax.linen or of flax.nnx, and `layout` what `_flax.layout` says of it.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import canonicalize_dtype
from jax.nn.initializers import constant, ones
from jaxtyping import Array

from jaxnorm import _checks
from jaxnorm._flax.layout import Layout
from jaxnorm._functional import normalize, normalize_tracking
from jaxnorm._state.running import as_complex
from jaxnorm._types import RunningState


def initial_scale(init: Any, scale_offset: float, who: str) -> Any:
    """The initializer of a scale: one that makes it 1, Flax's default, makes the scale and its offset 1."""
    _checks.scale_offset(scale_offset, who)
    return constant(1 - scale_offset) if init is ones and scale_offset else init


def standardized(norm: Any, x: Any, layout: Layout, affine: Sequence[Any], mask: Any) -> Array:
    """The norm of `x`, without state. `affine` are its scale and bias."""
    x, dtype = _dtypes(norm, x, affine)
    arguments = _arguments(norm, x, layout.feature_axes, affine, mask)
    return normalize(x, *layout, **arguments, dtype=dtype)


def tracked(
    norm: Any, x: Any, layout: Layout, affine: Sequence[Any], mask: Any, state: RunningState, train: bool,
    differentiable: bool = False,
) -> tuple[Array, Any]:  # fmt: skip
    """The norm of `x`, and its running statistics after it, in whatever dtype Flax keeps them.

    `differentiable`: gradients flow from these into `x`.
    """
    name = type(norm).__name__
    if norm.momentum is None:
        raise ValueError(
            f"{name}: momentum=None averages by the number of updates, which Flax does not keep. A norm that "
            f"does is Norm(jaxnorm.BatchNorm(momentum=None))."
        )
    x, dtype = _dtypes(norm, x, affine)
    if jnp.issubdtype(dtype, jnp.complexfloating) and not jnp.iscomplexobj(state.mean):
        state = as_complex(state, x.dtype if jnp.iscomplexobj(x) else dtype)
    arguments = _arguments(norm, x, layout.feature_axes, affine, mask)
    options = arguments | {"momentum": norm.momentum, "ddof": norm.ddof, "dtype": dtype}
    return normalize_tracking(x, state, *layout, train=train, differentiable=differentiable, **options)


def _dtypes(norm: Any, x: Any, affine: Sequence[Any]) -> tuple[Array, Any]:
    """`x` as floating point, and the dtype of y, by Flax's rules."""
    dtype = jax.dtypes.canonicalize_dtype(canonicalize_dtype(x, *affine, dtype=norm.dtype))
    return jnp.asarray(x, None if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.float32), dtype


def _arguments(norm: Any, x: Array, feature_axes: Sequence[int], affine: Sequence[Any], mask: Any) -> dict[str, Any]:
    shape = [x.shape[a] for a in feature_axes]
    # nnx keeps one vector, along however many axes it lies.
    scale, bias = (v.reshape(shape) if v is not None and v.size == math.prod(shape) else v for v in affine)
    who = type(norm).__name__
    # The same check as in `normalize`, but here it is called mask, and messages say so.
    mask = _checks.where(_mask(norm, x, mask), x, who, "mask")
    offset = norm.scale_offset
    return {"scale": scale, "bias": bias, "epsilon": norm.epsilon, "where": mask, "who": who, "scale_offset": offset}


def _mask(norm: Any, x: Array, mask: Any) -> Any:
    """A mask in the dimensions of `x`, which it broadcasts to as in NumPy."""
    if mask is None or jnp.ndim(mask) >= x.ndim:
        return mask
    shape, missing = np.shape(mask), x.ndim - jnp.ndim(mask)
    if any(m not in (1, n) for m, n in zip(shape, x.shape[missing:], strict=True)):
        return mask
    if math.prod(shape) > 1 and shape == x.shape[: len(shape)]:
        who = type(norm).__name__
        raise ValueError(
            f"{who}: mask has shape {shape} and x has shape {x.shape}: its dimensions may be the first or the "
            f"last ones of x. Write mask[..., {', '.join(['None'] * missing)}] or mask[{'None, ' * missing}...]."
        )
    return jnp.reshape(mask, (1,) * missing + shape)
