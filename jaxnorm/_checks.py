"""What is said when an argument does not fit: at trace time, with the fact, the value and the remedy."""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxnorm._over import real_dtype
from jaxnorm._trees import Accumulating, Moments, RunningStats

P = ParamSpec("P")
R = TypeVar("R")

_ELSEWHERE = {"eps": "epsilon", "num_groups": "groups", "mask": "where", "weight": "scale", "decay": "momentum"}
"""What arguments are called in other libraries, and here."""


def in_other_words(call: Callable[P, R]) -> Callable[P, R]:
    """The function, which says what its arguments are called where another library's names are given."""

    @wraps(call)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if kwargs:
            for theirs, ours in _ELSEWHERE.items():
                if theirs in kwargs:
                    who = call.__qualname__.removesuffix(".__init__")
                    raise TypeError(f"{who} got an unexpected keyword argument {theirs!r}. Did you mean {ours}=?")
        return call(*args, **kwargs)

    return checked


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


def several_axes(value):
    """Axes as a tuple of what was given, whichever collection that is; a single one as it is."""
    if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, Tracer):
        return tuple(value.tolist()) if value.ndim else value.item()
    if isinstance(value, set | frozenset):
        return tuple(sorted(value, key=repr))
    return tuple(value) if isinstance(value, list | range) else value


def channel_axis(value, who):
    """A single axis, as far as that is known without data."""
    if not _whole(value):
        raise TypeError(f"{who}: channel_axis={value!r} is not an int. Channels lie along one axis.")


def axes(value, ndim, who, what="x"):
    """Several axes, counted from 0, in order."""
    value = several_axes(value)
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


def where(value, x, who, name="where"):
    """A mask or weights that broadcast to `x` without adding dimensions; `name` is what the caller wrote."""
    if value is None:
        return None
    value = jnp.asarray(value)
    real = value.dtype == jnp.bool_ or (jnp.issubdtype(value.dtype, jnp.number) and not jnp.iscomplexobj(value))
    if not real:
        raise TypeError(f"{who}: {name} has dtype {value.dtype}. It holds booleans or real weights.")
    if value.ndim != x.ndim or any(w not in (1, n) for w, n in zip(value.shape, x.shape, strict=True)):
        raise ValueError(
            f"{who}: {name} has shape {value.shape} and x has shape {x.shape}. {name} needs the {x.ndim} dimensions of "
            f"x, each of the same size or 1{_padded(value, x.shape, name)}."
        )
    weights(value, f"{who}: {name}")
    return value


def weights(value, who):
    """Booleans, or finite numbers of at least 0."""
    numbers = None if value.dtype == jnp.bool_ else _known(value)
    if numbers is not None and not (numbers >= 0).all():
        raise ValueError(f"{who} holds {numbers.min()}. Weights are 0 or more, and 0 excludes a position.")
    if numbers is not None and (numbers == np.inf).any():
        raise ValueError(f"{who} holds inf. Weights are finite: to count a position alone, exclude the others by 0.")


def _padded(value, full, name):
    """How to index an array that lacks the trailing dimensions of another, or to make a mask of lengths."""
    shape, missing = value.shape, ", None" * (len(full) - value.ndim)
    if len(shape) >= len(full) or shape != full[: len(shape)]:
        return ""
    if len(shape) == 1 and jnp.issubdtype(value.dtype, jnp.integer):
        mask = f"jnp.arange({full[1]}) < lengths[:, None]"
        mask = mask if len(full) == 2 else f"({mask})[...{', None' * (len(full) - 2)}]"
        return f". If these are lengths, the mask is {mask}"
    return f": {name}[...{missing}]"


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
    if value is None or isinstance(value, str | bytes | dict | set):
        hint = " To YAML, a number without a point is text: write 1.0e-5." if isinstance(value, str) else ""
        raise TypeError(f"{who}: {name}={value!r} is not a number.{hint}")
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
    if isinstance(value, type):
        raise TypeError(f"{who}: spec={value!r} is not a spec: write {value.__name__}().")
    name = type(value).__name__
    if any(base.__module__.startswith("flax.") for base in type(value).__mro__):
        same = name if name in ("BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "RMSNorm") else "BatchNorm"
        raise TypeError(f"{who}: spec is {name}, a module of Flax, not a spec: write jaxnorm.{same}(...).")
    if not hasattr(value, "apply"):
        raise TypeError(f"{who}: spec={value!r} is not a spec, as jaxnorm.BatchNorm() is.")


def mode(training, use_running_average, who):
    """Whether to train, from either way to say it; None where neither is said."""
    if training is not None and use_running_average is not None:
        raise ValueError(
            f"{who}: train={training} and use_running_average={use_running_average} say the same thing twice. Give one."
        )
    if use_running_average is not None:
        return not flag(use_running_average, who, "use_running_average")
    return None if training is None else train(training, who)


def idle_flag(value, who, name):
    """A flag where it has no effect, while statistics are recalibrated: a mask in its place is a mistake."""
    if value is not None and (jnp.shape(value) or jnp.result_type(value) != jnp.bool_):
        raise TypeError(
            f"{who}: {name} has shape {jnp.shape(value)} and dtype {jnp.result_type(value)}: it is True or False. Give "
            f"a mask by its name."
        )


def given_twice(spec, who, **values):
    """A scale or bias in the call is for a spec that learns none."""
    for name, value in values.items():
        if value is not None and getattr(spec, f"use_{name}", False):
            raise ValueError(
                f"{who}: {name} is given in the call, and {type(spec).__name__} learns one. Use "
                f"{type(spec).__name__}(use_{name}=False)."
            )


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


def unbiased(where, axes, x, ddof, who):
    """Weights that leave something when ddof is taken off their sum."""
    numbers = None if where is None or where.dtype == jnp.bool_ else _known(where)
    if not ddof or numbers is None or not numbers.size:
        return
    # Ones and zeros are a mask: one example alone has no unbiased variance, and that is no mistake.
    if (numbers == np.round(numbers)).all():
        return
    copies = math.prod(x.shape[a] for a in axes if numbers.shape[a] == 1)
    most = float(numbers.sum(tuple(axes)).max()) * copies
    if 0 < most <= ddof:
        raise ValueError(
            f"{who}: the weights in where sum to {most:g} at most, and ddof={ddof} takes off as much: the running "
            f"variance would never move. Give weights that count examples, or ddof=0."
        )


def shares(value, mean, who):
    """A weight for each of a stack of states."""
    if value.shape != mean.shape[:1]:
        raise ValueError(
            f"{who}: weights has shape {value.shape}, and there are {mean.shape[0]} states. Give one number for each."
        )
    weights(value, f"{who}: weights")
    known = _known(value)
    if known is not None and not known.any():
        raise ValueError(f"{who}: weights are all 0. Leave them out to weigh all states the same.")


def parts(found, axis):
    """Moments to merge, all of one kind."""
    several(found, axis, "merge")
    for part in found:
        if not isinstance(part, Moments):
            raise TypeError(f"merge: got {type(part).__name__}, not Moments. Moments of data are jaxnorm.moments(x).")
    if len({(part.min is None, part.max is None) for part in found}) > 1:
        raise TypeError("merge: moments with and without extremes do not merge. Take all with extremes=True, or none.")
    shapes = {jnp.shape(part.mean) for part in found}
    if len(shapes) > 1:
        raise ValueError(f"merge: shapes differ: {sorted(shapes)}. Take all moments over the same axes.")


def implementation(value, who):
    """Who computes it."""
    if value not in (None, "xla", "pallas"):
        raise ValueError(f"{who}: implementation={value!r} is not known. It is None (to choose), 'xla' or 'pallas'.")


def features(spec, given, shape, who):
    """As many features in data of this shape as a module was made for."""
    found = spec.features(shape) if hasattr(spec, "features") else given
    if tuple(np.atleast_1d(found)) != tuple(np.atleast_1d(given)):
        raise ValueError(f"{who}: it was made for {given} features, but x has shape {shape}, with {found} of them.")


def positions(axes, x, who):
    """Something beside examples and channels to take statistics over.

    Without such axes every number is its own mean, and y the bias: that can't have been meant. Axes of size 1 are let
    through: deep in a network that takes images of any size, some have one position. An image without its axis of
    examples can't be told from a batch of rows: there is nothing to say of it.
    """
    if not axes:
        raise ValueError(
            f"{who}: x has shape {x.shape}: beside the axes of examples and channels it has none to take statistics "
            f"over, and y would be the bias. For rows of features there are layer_norm and batch_norm; data without an "
            f"axis of examples need batch_axis=None."
        )


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
    # Of a symbolic batch 4 b, a quarter is known to be whole.
    if batch % size != 0:
        if not isinstance(batch, int):
            raise ValueError(f"{who}: virtual_batch_size={size} is not known to divide the batch of {batch} examples.")
        shares = f" ({devices} devices with {x.shape[0]} each)" if over.names else ""
        near = [n for n in range(1, batch + 1) if batch % n == 0]
        raise ValueError(
            f"{who}: virtual_batch_size={size} does not divide the batch of {batch} examples{shares}. "
            f"These do: {near}. Or fill the batch up with examples that where excludes."
        )


def averages(state, who):
    """Running statistics that can be updated: what is added to an average must not be lost in its rounding."""
    if state is None:
        return
    for name in ("mean", "var", "weight_sum"):
        dtype = getattr(getattr(state, name, None), "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
            raise TypeError(
                f"{who}: state.{name} has dtype {dtype}, in which an average stands still: updates get lost in its "
                f"rounding. Keep the state in float32 while training: state.{name}.astype(jnp.float32)."
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
    if train and momentum is None and state.weight_sum is None:
        raise ValueError(
            f"{who}: momentum=None averages all updates equally, and has to know how many there were, but "
            f"state.weight_sum is None. A spec with momentum=None makes it in init; for a state that is there, "
            f"state._replace(weight_sum=jnp.zeros_like(state.var)) begins to count."
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
