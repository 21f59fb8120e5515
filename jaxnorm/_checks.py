"""What is said when an argument does not fit: at trace time, with the fact, the value and the remedy."""

import math
from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnorm._over import real_dtype
from jaxnorm._trees import Accumulating, RunningStats


def _known(value):
    """The value as NumPy, or None while it is traced or lives on other hosts."""
    here = not isinstance(value, Tracer) and getattr(value, "is_fully_addressable", True)
    return np.asarray(value) if here else None


def data(x, who):
    """`x` as an array of floating point numbers."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"{who}: x has dtype {x.dtype}. Convert it to floating point: x.astype(jnp.float32).")
    return x


def _whole(value, least=-math.inf):
    """Whether it is an int of at least so much."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= least


def axis(value, ndim, who, what="x"):
    """One axis, counted from 0."""
    if not _whole(value):
        raise TypeError(f"{who}={value!r} is not an int.")
    if not -ndim <= value < ndim:
        raise ValueError(f"{who}={value} is out of range: {what} has {ndim} dimensions.")
    return int(value) % ndim


def axes(value, ndim, who, what="x"):
    """Several axes, counted from 0, in order."""
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    found = tuple(sorted(axis(a, ndim, who, what) for a in several))
    if len(set(found)) < len(found):
        raise ValueError(f"{who}={value} names an axis of {what}, which has {ndim} dimensions, twice.")
    return found


def names(axis_name, who):
    """The mapped axes as a tuple, each of them bound."""
    if axis_name is None:
        return ()
    found = tuple(axis_name) if isinstance(axis_name, list | tuple) else (axis_name,)
    if not all(isinstance(name, Hashable) for name in found):
        raise TypeError(f"{who}: axis_name={axis_name!r} is not a name, or a list or tuple of names.")
    if len(set(found)) < len(found):
        raise ValueError(f"{who}: axis_name={axis_name!r} names an axis twice.")
    for name in found:
        if isinstance(name, int):
            raise TypeError(f"{who}: axis_name={axis_name!r} is not a name. Axes of x are not mapped axes.")
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
    real = value.dtype == jnp.bool_ or (jnp.issubdtype(value.dtype, jnp.number) and not jnp.iscomplexobj(value))
    if not real:
        raise TypeError(f"{who}: where has dtype {value.dtype}. It holds booleans or real weights.")
    if value.ndim != x.ndim or any(w not in (1, n) for w, n in zip(value.shape, x.shape, strict=True)):
        raise ValueError(
            f"{who}: where has shape {value.shape} and x has shape {x.shape}. where needs the {x.ndim} dimensions of "
            f"x, each of the same size or 1{_padded(value.shape, x.shape)}."
        )
    weights(value, f"{who}: where")
    return value


def weights(value, who):
    """Booleans, or finite numbers of at least 0."""
    numbers = None if value.dtype == jnp.bool_ else _known(value)
    if numbers is not None and not (numbers >= 0).all():
        raise ValueError(f"{who} holds {numbers.min()}. Weights are 0 or more, and 0 excludes a position.")
    if numbers is not None and (numbers == np.inf).any():
        raise ValueError(f"{who} holds inf. Weights are finite: to count a position alone, exclude the others by 0.")


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
    given, value = value, jnp.asarray(value)
    if jnp.iscomplexobj(value) or value.dtype == jnp.bool_:
        raise TypeError(f"{who}: {name} has dtype {value.dtype}. It is a real number.")
    if value.ndim:
        raise ValueError(f"{who}: {name} has shape {value.shape}. It is one number; for several, jax.vmap over them.")
    known = _known(value)
    if known is not None and not 0 <= known <= most:
        bounds = "0 or more" if most == math.inf else f"between 0 and {most}"
        raise ValueError(f"{who}: {name}={given} is not {bounds}.")
    return value.astype(real_dtype(x))


def train(value, who):
    """A flag that is True or False."""
    if not isinstance(value, bool | np.bool_ | Tracer):
        raise TypeError(f"{who}: train={value!r} is not True or False.")
    return flag(value, who, "train")


def flag(value, who, name):
    """A flag that is known when tracing, since it chooses the program."""
    if value is None:
        raise ValueError(f"{who}: {name} is given nowhere. Give it to the constructor or to the call: True or False.")
    if isinstance(value, Tracer):
        raise TypeError(
            f"{who}: {name} is traced, but it chooses the program: use jax.jit(..., static_argnames='{name}')."
        )
    return bool(value)


def spec(value, who):
    """A norm, and not its class or what should come after it."""
    if isinstance(value, type) or not hasattr(value, "apply"):
        hint = f": write {value.__name__}()" if isinstance(value, type) else ", as jaxnorm.BatchNorm() is"
        raise TypeError(f"{who}: spec={value!r} is not a spec{hint}.")


def key(rngs, who):
    """A random key for an initializer."""
    if rngs is None:
        raise ValueError(f"{who}: initializers need a random key. Give rngs=nnx.Rngs(0).")
    return rngs.params()


def ddof(value, who):
    """What is taken off the number of data, for the running variance."""
    if not _whole(value, 0):
        raise ValueError(f"{who}: ddof={value!r} is not an int of at least 0. 0 is the biased variance, 1 PyTorch's.")


def several(found, axis, who):
    """Something to merge, and one way to do it."""
    if not found:
        raise TypeError(f"{who}: there is nothing to merge.")
    if axis is not None and len(found) > 1:
        raise ValueError(f"{who}: axis={axis} goes with one, in which all are stacked; got {len(found)}.")


def counts(count, mean, who):
    """A count of updates for each state, or none at all; states may be those of several layers."""
    if count is not None and count.shape != mean.shape[: count.ndim]:
        raise ValueError(
            f"{who}: stacked counts have shape {count.shape}, and means {mean.shape}. Where states are those of "
            f"several layers, the axis of these comes first in both."
        )


def parts(found, kinds, axis):
    """Moments to merge, all of one kind."""
    several(found, axis, "merge")
    for part in found:
        if not isinstance(part, kinds):
            raise TypeError(f"merge: got {type(part).__name__}, not Moments. Moments of data are jaxnorm.moments(x).")
    if len({(type(part), jax.tree.structure(part)) for part in found}) > 1:
        raise TypeError("merge: Moments and FeatureStats, or these with and without extremes, do not merge.")
    shapes = {jnp.shape(part.mean) for part in found}
    if len(shapes) > 1:
        raise ValueError(f"merge: shapes differ: {sorted(shapes)}. Take all moments over the same axes.")


def implementation(value, who):
    """Who computes it."""
    if value not in (None, "xla", "pallas"):
        raise ValueError(f"{who}: implementation={value!r} is not known. It is None (to choose), 'xla' or 'pallas'.")


def divides(groups, channels, who):
    """Groups of equal size."""
    if not _whole(groups, 1):
        raise ValueError(f"{who}: groups={groups!r} is not a positive int.")
    if channels % groups:
        near = [g for g in range(1, channels + 1) if channels % g == 0]
        raise ValueError(f"{who}: groups={groups} does not divide {channels} channels. These do: {near}.")


def ghost(size, over, x, who):
    """Groups of examples that make up the batch."""
    if not _whole(size, 1):
        raise ValueError(f"{who}: virtual_batch_size={size!r} is not a positive int.")
    if 0 not in over.axes:
        raise ValueError(
            f"{who}: virtual_batch_size={size} groups examples along axis 0 of x, of shape {x.shape}, but that holds "
            f"the channels. Use another channel_axis."
        )
    devices = jax.lax.psum(1, over.names)
    batch = devices * x.shape[0]
    if batch % size:
        shares = f" ({devices} devices with {x.shape[0]} each)" if over.names else ""
        near = [n for n in range(1, batch + 1) if batch % n == 0]
        raise ValueError(
            f"{who}: virtual_batch_size={size} does not divide the batch of {batch} examples{shares}. "
            f"These do: {near}. Or fill the batch up with examples that where excludes."
        )


def running(state, x, axes, train, momentum, who):
    """Running statistics of the channels of `x`, which lie along `axes`, or none at all."""
    if state is None:
        if not train:
            raise ValueError(f"{who}: state is None, but evaluation needs running statistics: those that init makes.")
        return
    if not isinstance(state, RunningStats | Accumulating):
        hint = " Make it one: jaxnorm.RunningStats(**state)." if isinstance(state, dict) else ""
        raise TypeError(f"{who}: state is a {type(state).__name__}, not RunningStats.{hint}")
    if train and momentum is None and state.count is None:
        raise ValueError(
            f"{who}: momentum=None averages by the number of updates, but state.count is None. Give it one: "
            f"state._replace(count=jnp.int32(0))."
        )
    for name, value, kind in (("mean", state.mean, jnp.inexact), ("var", state.var, jnp.floating)):
        found = getattr(value, "dtype", type(value).__name__)
        if isinstance(found, str) or not jnp.issubdtype(found, kind):
            raise TypeError(f"{who}: state.{name} is of {found}. It is an array of {kind.__name__} numbers.")
        channels = tuple(x.shape[a] for a in axes)
        if jnp.shape(value) != channels:
            raise ValueError(
                f"{who}: state.{name} has shape {jnp.shape(value)}, but axis {', '.join(map(str, axes))} of x, of "
                f"shape {x.shape}, holds {' by '.join(map(str, channels))} channels."
            )
    if jnp.iscomplexobj(state.mean) != jnp.iscomplexobj(x):
        raise TypeError(
            f"{who}: x has dtype {x.dtype} and state.mean has {jnp.asarray(state.mean).dtype}. Initialise with "
            f"dtype={x.dtype.name!r}: a state keeps its dtype."
        )
