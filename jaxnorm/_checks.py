"""What is said when an argument does not fit: at trace time, with the fact, the value and the remedy."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._statistics import real_dtype


def _known(value):
    """The value as NumPy, or None while it is traced or lives on other hosts."""
    here = not isinstance(value, jax.core.Tracer) and getattr(value, "is_fully_addressable", True)
    return np.asarray(value) if here else None


def data(x, who):
    """`x` as an array of floating point numbers."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"{who}: x has dtype {x.dtype}. Convert it to floating point: x.astype(jnp.float32).")
    return x


def axis(value, ndim, who):
    """One axis, counted from 0."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{who}={value!r} is not an int.")
    if not -ndim <= value < ndim:
        raise ValueError(f"{who}={value} is out of range: x has {ndim} dimensions.")
    return int(value) % ndim


def axes(value, ndim, who):
    """Several axes, counted from 0, in order."""
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    found = tuple(sorted(axis(a, ndim, who) for a in several))
    if len(set(found)) < len(found):
        raise ValueError(f"{who}={value} names an axis of x, which has {ndim} dimensions, twice.")
    return found


def names(axis_name, who):
    """The mapped axes as a tuple, each of them bound."""
    if axis_name is None:
        return ()
    found = tuple(axis_name) if isinstance(axis_name, list | tuple) else (axis_name,)
    for name in found:
        try:
            jax.lax.psum(1, name)
        except NameError:
            raise NameError(
                f"{who}: axis_name={name!r} is not bound here. Call it under jax.vmap(..., axis_name={name!r}), pmap "
                f"or shard_map, or leave axis_name out: under plain jit, statistics of sharded arrays are global."
            ) from None
    return found


def where(value, x, who):
    """A mask or weights that broadcast to `x` without adding dimensions."""
    if value is None:
        return None
    value = jnp.asarray(value)
    if jnp.iscomplexobj(value) or not jnp.issubdtype(value.dtype, jnp.number) and value.dtype != jnp.bool_:
        raise TypeError(f"{who}: where has dtype {value.dtype}. It holds booleans or real weights.")
    if value.ndim != x.ndim or any(w not in (1, n) for w, n in zip(value.shape, x.shape, strict=True)):
        raise ValueError(
            f"{who}: where has shape {value.shape} and x has shape {x.shape}. where needs the {x.ndim} dimensions of x, "
            f"each of the same size or 1{_padded(value.shape, x.shape)}."
        )
    numbers = None if value.dtype == jnp.bool_ else _known(value)
    if numbers is not None and not (numbers >= 0).all():
        raise ValueError(f"{who}: where holds {numbers.min()}. Weights are 0 or more, and 0 excludes a position.")
    return value


def _padded(shape, full):
    """How to index an array that lacks the trailing dimensions of another."""
    if len(shape) < len(full) and shape == full[: len(shape)]:
        return ": where[..." + ", None" * (len(full) - len(shape)) + "]"
    return ""


def affine(value, x, axes, who, name):
    """A scale or bias in the dimensions of `x`."""
    if value is None:
        return None
    if isinstance(value, dict):
        raise TypeError(f"{who}: {name} is a dict with keys {sorted(value)}, not an array.")
    value = jnp.asarray(value)
    if jnp.iscomplexobj(value) and not jnp.iscomplexobj(x):
        raise TypeError(f"{who}: {name} has dtype {value.dtype} and x has {x.dtype}: y would lose its imaginary part.")
    vector = tuple(x.shape[a] for a in axes)
    if value.ndim == 0 or value.shape == vector:
        return value.reshape([x.shape[a] if a in axes and value.ndim else 1 for a in range(x.ndim)])
    if value.ndim == x.ndim and all(v in (1, n) for v, n in zip(value.shape, x.shape, strict=True)):
        return value
    raise ValueError(
        f"{who}: {name} has shape {value.shape} and x has shape {x.shape}. {name} is a scalar, has shape {vector} "
        f"(axis {', '.join(map(str, axes))} of x), or has {x.ndim} dimensions that broadcast to x"
        f"{_conditional(value.shape, vector, x, axes, name)}."
    )


def _conditional(shape, vector, x, axes, name):
    """How to write one scale per example."""
    if len(shape) == 1 + len(vector) and shape == (x.shape[0], *vector) and 0 not in axes:
        full = tuple(n if a == 0 or a in axes else 1 for a, n in enumerate(x.shape))
        return f". For one {name} per example: {name}.reshape{full}"
    return ""


def number(value, x, who, name, most=math.inf):
    """A real number of at least 0, as a scalar in the dtype of the statistics of `x`."""
    value = jnp.asarray(value)
    if jnp.iscomplexobj(value) or value.dtype == jnp.bool_:
        raise TypeError(f"{who}: {name} has dtype {value.dtype}. It is a real number.")
    if value.ndim:
        raise ValueError(f"{who}: {name} has shape {value.shape}. It is one number; for several, jax.vmap over them.")
    known = _known(value)
    if known is not None and not 0 <= known <= most:
        raise ValueError(f"{who}: {name}={known}, which is not {f'between 0 and {most}' if most < math.inf else '0 or more'}.")
    return value.astype(real_dtype(x))


def train(value, who):
    """A flag that is known when tracing, since it chooses the program."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{who}: train is traced, but it chooses the program. Use jax.jit(..., static_argnames='train').")
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{who}: train={value!r} is not True or False.")
    return bool(value)


def parts(found, kind, axis):
    """Something to merge, and one way to do it."""
    if not found:
        raise TypeError("merge: nothing to merge. The moments of no data are Moments.zeros(shape).")
    for part in found:
        if not isinstance(part, kind):
            raise TypeError(f"merge: got {type(part).__name__}, not Moments. Moments of data are jaxnorm.moments(x).")
    if axis is not None and len(found) > 1:
        raise ValueError(f"merge: axis={axis} goes with one stacked Moments; got {len(found)}.")
    shapes = {jnp.shape(part.mean) for part in found}
    if len(shapes) > 1:
        raise ValueError(f"merge: shapes differ: {sorted(shapes)}. Take all moments over the same axes.")


def divides(groups, channels, who):
    """Groups of equal size."""
    if isinstance(groups, bool) or not isinstance(groups, int | np.integer) or groups < 1:
        raise ValueError(f"{who}: groups={groups!r} is not a positive int.")
    if channels % groups:
        near = [g for g in range(1, channels + 1) if channels % g == 0]
        raise ValueError(f"{who}: groups={groups} does not divide {channels} channels. These do: {near}.")


def running(state, kind, x, channel, train, who):
    """Running statistics of the channels of `x`, or none at all."""
    if state is None:
        if not train:
            raise ValueError(f"{who}: state=None with train=False. Evaluation needs running statistics; init makes them.")
        return
    if not isinstance(state, kind):
        hint = " Make it one: RunningStats(**state)." if isinstance(state, dict) else ""
        raise TypeError(f"{who}: state is a {type(state).__name__}, not RunningStats.{hint}")
    for name, value in (("mean", state.mean), ("var", state.var)):
        if jnp.shape(value) != (x.shape[channel],):
            raise ValueError(
                f"{who}: state.{name} has shape {jnp.shape(value)}, but axis {channel} of x, which has shape {x.shape}, "
                f"holds {x.shape[channel]} channels."
            )
    if jnp.iscomplexobj(state.mean) != jnp.iscomplexobj(x):
        raise TypeError(
            f"{who}: x has dtype {x.dtype} and state.mean has {jnp.asarray(state.mean).dtype}. Initialise with "
            f"dtype={x.dtype.name!r}: a state keeps its dtype."
        )


def spec(spec, axes, params, state, x, kinds):
    """Parameters and a state that belong to this spec and fit `x`."""
    affine, running = kinds
    who = type(spec).__name__
    if isinstance(params, running) or isinstance(state, affine):
        raise TypeError(f"{who}.apply: params and state are swapped. The order is apply(params, state, x).")
    if not isinstance(params, affine):
        hint = " Make it one: jaxnorm.Affine(**params)." if isinstance(params, dict) else ""
        raise TypeError(f"{who}.apply: params is a {type(params).__name__}, not jaxnorm.Affine.{hint}")
    shape = jnp.shape(x)
    if any(not -len(shape) <= a < len(shape) for a in axes):
        raise ValueError(f"{who} normalizes axis {_list(axes)}, which x with shape {shape} does not have.")
    found = tuple(shape[a] for a in sorted(a % len(shape) for a in axes))
    mean = state.mean if isinstance(state, running) else None
    for value in (mean, *params):
        # An array with the dimensions of x may broadcast to it; the verb has the word on that.
        wanted = found if value is None else jnp.shape(value)
        if len(wanted) == len(axes) and wanted != found and (len(shape) > len(axes) or value is mean):
            raise ValueError(_features(spec, axes, wanted, found, shape))


def _features(spec, axes, wanted, found, shape):
    channels = len(axes) == 1 and hasattr(spec, "channel_axis")
    field = "channel_axis" if channels else "axis"
    one = len(axes) == 1
    message = (
        f"{type(spec).__name__}({field}={getattr(spec, field)}) was initialised for {wanted[0] if one else wanted} "
        f"features, but x has shape {shape}: its {'axis' if one else 'axes'} {_list(axes)} {'has' if one else 'have'} "
        f"{_list(found)}."
    )
    if not channels or wanted[0] not in shape:
        return message
    axis = shape.index(wanted[0])
    layout = {1: "channels-first data, use channel_axis=1", len(shape) - 1: "channels-last data, use channel_axis=-1"}
    return f"{message} For {layout.get(axis, f'channels along axis {axis}, use channel_axis={axis}')}."


def _list(numbers):
    return ", ".join(map(str, numbers))


def features(spec, axes, features):
    """The shape of the normalized axes."""
    shape = tuple(features) if isinstance(features, Sequence) else (features,)
    who = f"{type(spec).__name__}.init({features!r})"
    if any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 0 for n in shape):
        raise TypeError(f"{who}: features is a number of channels, or the shape of the normalized axes.")
    if len(shape) != len(axes):
        raise ValueError(
            f"{who}: {len(axes)} axes are normalized, axis {_list(axes)} of x, but {len(shape)} sizes are given. "
            f"Give the shape of the normalized axes, in the order in which x has them."
        )
    return tuple(map(int, shape))


def stateless(state, who):
    """No state for a norm that has none."""
    if state is not None:
        raise TypeError(f"{who}: state is a {type(state).__name__}, but {who} has none: pass None.")


def param_dtype(dtype, who):
    """A dtype that parameters can have."""
    dtype = jnp.dtype(jnp.float32 if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"{who}.init: dtype={dtype} is not floating point or complex.")
    return dtype
