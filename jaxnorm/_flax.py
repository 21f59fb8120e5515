"""Flax's norms in the terms of the core: what shares a statistic, where a scale lies, which mask, which dtypes.

`norm` is a module of flax.linen or of flax.nnx: both give the same names to what their constructors were told.
"""

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax.errors import TraceContextError
from flax.linen.dtypes import canonicalize_dtype

from jaxnorm import _checks
from jaxnorm._normalize import normalize, normalize_tracking
from jaxnorm._over import Over, wide_dtype
from jaxnorm._states import as_complex


def batch_norm(norm, x, alone):
    """Along which positions a statistic is taken, and along which axes a scale lies. `alone`: on this device only."""
    features = _axes(norm, "axis", x)
    return _over(norm, [a for a in range(x.ndim) if a not in features], alone), features


def layer_norm(norm, x, alone):
    """The same for layer norm."""
    return _over(norm, _axes(norm, "reduction_axes", x), alone), _axes(norm, "feature_axes", x)


def rms_norm(norm, x, alone):
    """The same for RMS norm, with the mean held at 0."""
    over, features = layer_norm(norm, x, alone)
    return over._replace(centered=False), features


def instance_norm(norm, x, alone):
    """The same for instance norm."""
    features = _axes(norm, "feature_axes", x)
    if 0 in features:
        raise ValueError(
            "The channel axes cannot include the leading dimension as this is assumed to be the batch axis: "
            f"feature_axes={norm.feature_axes}, and x has shape {x.shape}."
        )
    return _over(norm, [a for a in range(1, x.ndim) if a not in features], alone), features


def group_norm(norm, x, alone):
    """The same for group norm."""
    channel, channels = x.ndim - 1, x.shape[-1]
    axes = (*range(1, channel), channel) if norm.reduction_axes is None else _axes(norm, "reduction_axes", x)
    if channel not in axes:
        raise ValueError(
            f"{_name(norm)}: reduction_axes={norm.reduction_axes} lacks axis {channel} of x, the last, which holds the "
            f"channels. Add it."
        )
    groups = norm.num_groups
    if groups is None and norm.group_size:
        groups = channels // norm.group_size
    _checks.divides(groups, channels, _name(norm))
    if norm.group_size is not None and groups * norm.group_size != channels:
        raise ValueError(
            f"{_name(norm)}: x has {channels} channels, which are not num_groups={groups} groups of "
            f"group_size={norm.group_size}. Give one of them, and None for the other."
        )
    over = _over(norm, [a for a in axes if a != channel], alone)
    return over._replace(groups=groups, channel=channel), (channel,)


def standardized(norm, x, over, features, affine, mask):
    """The norm of `x`, without state. `affine` are its scale and bias."""
    x, dtype = _dtypes(norm, x, affine)
    return normalize(x, over, features, **_arguments(norm, x, features, affine, mask), dtype=dtype)


def tracked(norm, x, over, features, affine, mask, state, train, differentiable=False):
    """The norm of `x`, and its running statistics after it; `differentiable`: gradients flow from these into `x`."""
    if norm.momentum is None:
        raise ValueError(
            f"{_name(norm)}: momentum=None averages by the number of updates, which Flax does not keep. A norm that "
            f"does is Norm(jaxnorm.BatchNorm(momentum=None))."
        )
    x, dtype = _dtypes(norm, x, affine)
    if jnp.iscomplexobj(x) and not jnp.iscomplexobj(state.mean):
        state = as_complex(state, x.dtype)
    options = _arguments(norm, x, features, affine, mask) | {"momentum": norm.momentum, "ddof": 0, "dtype": dtype}
    return normalize_tracking(x, state, over, features, train=train, differentiable=differentiable, **options)


def write(variable, value):
    """Sets a variable of nnx. Complex data makes it complex."""
    try:
        variable.set_value(value)
    except TraceContextError as error:
        error.add_note(
            "Running statistics can't be updated from inside a transform that closes over the module. Pass the module "
            "as an argument, and name the axis that shares its statistics: nnx.vmap(lambda model, x: model(x), "
            "in_axes=(None, 0), axis_name='batch')(model, x), with axis_name='batch' in the norm, too."
        )
        raise


def _name(norm):
    return type(norm).__name__


def _axes(norm, name, x):
    """Axes counted from 0, in order, each once."""
    given = getattr(norm, name)
    several = given if isinstance(given, Iterable) else (given,)
    return tuple(sorted({_checks.axis(a, x.ndim, f"{_name(norm)}: {name}") for a in several}))


def _over(norm, axes, alone):
    if alone or norm.axis_name is None:
        return Over(tuple(axes))
    teams = norm.axis_index_groups
    teams = teams if teams is None else tuple(map(tuple, teams))
    return Over(tuple(axes), _checks.names(norm.axis_name, _name(norm)), teams=teams)


def _dtypes(norm, x, affine):
    """`x` in a dtype whose arithmetic is as wide as y, and the dtype of y, by Flax's rules."""
    dtype = jax.dtypes.canonicalize_dtype(canonicalize_dtype(x, *affine, dtype=norm.dtype))
    x = jnp.asarray(x, None if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.float32)
    wider = wide_dtype(jnp.zeros((), dtype)).itemsize > wide_dtype(x).itemsize
    return x.astype(dtype) if wider else x, dtype


def _arguments(norm, x, features, affine, mask):
    shape = [x.shape[a] for a in features]
    # nnx keeps one vector, along however many axes it lies.
    scale, bias = (v.reshape(shape) if v is not None and v.size == math.prod(shape) else v for v in affine)
    mask = _checks.where(_mask(norm, x, mask), x, _name(norm), "mask")
    return {"scale": scale, "bias": bias, "epsilon": norm.epsilon, "where": mask, "who": _name(norm)}


def _mask(norm, x, mask):
    """A mask in the dimensions of `x`, which it broadcasts to as in NumPy."""
    if mask is None or jnp.ndim(mask) >= x.ndim:
        return mask
    shape, missing = jnp.shape(mask), x.ndim - jnp.ndim(mask)
    if any(m not in (1, n) for m, n in zip(shape, x.shape[missing:], strict=True)):
        return mask
    if math.prod(shape) > 1 and shape == x.shape[: len(shape)]:
        raise ValueError(
            f"{_name(norm)}: mask has shape {shape} and x has shape {x.shape}: its dimensions may be the first or the "
            f"last ones of x. Write mask[..., {', '.join(['None'] * missing)}] or mask[{'None, ' * missing}...]."
        )
    return jnp.reshape(mask, (1,) * missing + shape)
