"""Messages about arguments of verbs that do not fit their data."""

import difflib
import inspect
import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxnorm._core.numerics import real_dtype
from jaxnorm._core.reduction import Reduction

P = ParamSpec("P")
R = TypeVar("R")

_ELSEWHERE = {
    "eps": "epsilon", "num_groups": "groups", "mask": "where", "weight": "scale", "decay": "momentum",
    "dtype": "param_dtype",
}  # fmt: skip
"""What arguments are called in other libraries, and here."""


def in_other_words(call: Callable[P, R]) -> Callable[P, R]:
    """The function, which says what its arguments are called where another library's names are given."""
    parameters = inspect.signature(call).parameters
    others = {theirs: ours for theirs, ours in _ELSEWHERE.items() if ours in parameters and theirs not in parameters}

    @wraps(call)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if kwargs:
            for theirs, ours in others.items():
                if theirs in kwargs:
                    who = f"{type(args[0]).__name__}.{call.__name__}" if "." in call.__qualname__ else call.__name__
                    who = who.removesuffix(".__init__")
                    raise TypeError(f"{who} got an unexpected keyword argument {theirs!r}. Did you mean {ours}=?")
        return call(*args, **kwargs)

    return checked


def one_of(name: Any, known: Collection[str], who: str, error: type[Exception] = ValueError) -> Any:
    """The entry of this name in a mapping, or the name itself among others."""
    if isinstance(name, str) and name in known:
        return known[name] if isinstance(known, Mapping) else name
    hints = {entry.replace("_", "").casefold(): f" Did you mean {entry!r}?" for entry in known}
    near = difflib.get_close_matches(str(name).replace("_", "").casefold(), hints, 1)
    raise error(f"{who} {name!r}.{hints[near[0]] if near else ''} Known are: {', '.join(sorted(known))}.")


def known(value: Any) -> np.ndarray | None:
    """The value as NumPy, or None while it is traced or lives on other hosts."""
    here = not isinstance(value, Tracer) and getattr(value, "is_fully_addressable", True)
    return np.asarray(value) if here else None


def data(x: Any, who: str, name: str = "x") -> Array:
    """`x` as an array of floating point numbers."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"{who}: {name} has dtype {x.dtype}. Convert it to floating point: {name}.astype(jnp.float32).")
    return x


def residual(value: Any, x: Array, who: str) -> Array:
    """The residual as an array of floating point numbers, of the shape of `x`."""
    if value is None:
        raise TypeError(f"{who}: residual is None. Without one, the norm alone does it: {who.removeprefix('add_')}.")
    value = data(value, who, "residual")
    if value.shape != x.shape:
        raise ValueError(
            f"{who}: residual has shape {value.shape}, and x has shape {x.shape}. A residual is added to x element by "
            f"element, and the sum is a result: give both one shape, by jnp.broadcast_to."
        )
    return value


def is_whole(value: Any, least: float = -math.inf) -> bool:
    """Whether a value is an int of at least so much."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


def axis(value: Any, ndim: int, who: str, what: str = "x") -> int:
    """One axis, counted from 0."""
    if not is_whole(value):
        raise TypeError(f"{who}={value!r} is not an int.")
    if not -ndim <= value < ndim:
        raise ValueError(f"{who}={value} is out of range: {what} has {ndim} dimensions.")
    return int(value) % ndim


def several_axes(value: Any) -> Any:
    """Axes as a tuple of what was given, whichever collection that is; a single one as it is."""
    if isinstance(value, np.ndarray | jax.Array) and not isinstance(value, Tracer):
        return tuple(value.tolist()) if value.ndim else value.item()
    if isinstance(value, set | frozenset):
        return tuple(sorted(value, key=repr))
    return tuple(value) if isinstance(value, list | range) else value


def channel_axis(value: Any, who: str) -> None:
    """Raises unless it is a single axis, as far as that is known without data."""
    if not is_whole(value):
        raise TypeError(f"{who}: channel_axis={value!r} is not an int. Channels lie along one axis.")


def axes(value: Any, ndim: int, who: str, what: str = "x") -> tuple[int, ...]:
    """Several axes, counted from 0, in order."""
    value = several_axes(value)
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    counted = tuple(sorted(axis(a, ndim, who, what) for a in several))
    if len(set(counted)) < len(counted):
        raise ValueError(f"{who}={value} names an axis of {what}, which has {ndim} dimensions, twice.")
    return counted


def names(axis_name: Any, who: str) -> tuple[Hashable, ...]:
    """The mapped axes as a tuple, each of them bound."""
    if axis_name is None:
        return ()
    several = tuple(axis_name) if isinstance(axis_name, list | tuple) else (axis_name,)
    if not all(isinstance(name, Hashable) for name in several):
        raise TypeError(f"{who}: axis_name={axis_name!r} is not a name, or a list or tuple of names.")
    if len(set(several)) < len(several):
        raise ValueError(f"{who}: axis_name={axis_name!r} names an axis twice.")
    for name in several:
        if isinstance(name, int):
            raise TypeError(f"{who}: axis_name={axis_name!r} is not a name. Axes of x are not mapped axes.")
        try:
            jax.lax.psum(1, name)
        except NameError:
            raise NameError(
                f"{who}: axis_name={name!r} is not bound here. Call it under jax.vmap(..., axis_name={name!r}), pmap "
                f"or shard_map, or leave axis_name out: under plain jit, statistics of sharded arrays are global."
            ) from None
    return several


def where(value: Any, x: Array, who: str, name: str = "where") -> Array | None:
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


def weights(value: Array, who: str) -> None:
    """Raises unless these are booleans, or finite numbers of at least 0."""
    numbers = None if value.dtype == jnp.bool_ else known(value)
    if numbers is not None and not (numbers >= 0).all():
        raise ValueError(f"{who} holds {numbers.min()}. Weights are 0 or more, and 0 excludes a position.")
    if numbers is not None and (numbers == np.inf).any():
        raise ValueError(f"{who} holds inf. Weights are finite: to count a position alone, exclude the others by 0.")


def _padded(value: Array, full: tuple[Any, ...], name: str) -> str:
    """How to index an array that lacks the trailing dimensions of another, or to make a mask of lengths."""
    shape, missing = value.shape, ", None" * (len(full) - value.ndim)
    if len(shape) >= len(full) or shape != full[: len(shape)]:
        return ""
    if len(shape) == 1 and jnp.issubdtype(value.dtype, jnp.integer):
        mask = f"jnp.arange({full[1]}) < lengths[:, None]"
        mask = mask if len(full) == 2 else f"({mask})[...{', None' * (len(full) - 2)}]"
        return f". If these are lengths, the mask is {mask}"
    return f": {name}[...{missing}]"


def affine(value: Any, x: Array, axes: Sequence[int], who: str, name: str) -> Array | None:
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


def _conditional(shape: Sequence[Any], vector: Sequence[Any], x: Array, axes: Sequence[int], name: str) -> str:
    """How to write one scale per example."""
    if len(shape) == 1 + len(vector) and shape == (x.shape[0], *vector) and 0 not in axes:
        full = tuple(n if a == 0 or a in axes else 1 for a, n in enumerate(x.shape))
        return f". For one {name} per example: {name}.reshape{full}"
    return ""


def number(value: Any, x: Array, who: str, name: str, most: float = math.inf, least: float = 0) -> Array:
    """A real number within limits, as a scalar in the dtype of the statistics of `x`."""
    if value is None or isinstance(value, str | bytes | dict | set):
        hint = " To YAML, a number without a point is text: write 1.0e-5." if isinstance(value, str) else ""
        raise TypeError(f"{who}: {name}={value!r} is not a number.{hint}")
    given, value = value, jnp.asarray(value)
    if jnp.iscomplexobj(value) or value.dtype == jnp.bool_:
        raise TypeError(f"{who}: {name} has dtype {value.dtype}. It is a real number.")
    if value.ndim:
        raise ValueError(f"{who}: {name} has shape {value.shape}. It is one number; for several, jax.vmap over them.")
    here = known(value)
    if here is not None and not least <= here <= most:
        bounds = f"{least} or more" if most == math.inf else f"between {least} and {most}"
        raise ValueError(f"{who}: {name}={given} is not {bounds}.")
    return value.astype(real_dtype(x))


def momentum(value: Any, x: Array, who: str) -> Array | None:
    """The weight of the old value, between 0 and 1, or None."""
    return None if value is None else number(value, x, who, "momentum", most=1)


def ddof(value: Any, who: str) -> None:
    """Raises unless ddof, which is taken off the number of data for the running variance, is an int of at least 0."""
    if not is_whole(value, 0):
        raise ValueError(f"{who}: ddof={value!r} is not an int of at least 0. 0 is the biased variance, 1 PyTorch's.")


def unbiased(where: Array | None, axes: Sequence[int], x: Array, ddof: int, who: str) -> None:
    """Raises where weights leave nothing when ddof is taken off their sum."""
    numbers = None if where is None or where.dtype == jnp.bool_ else known(where)
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


def positions(axes: Sequence[int], x: Array, who: str) -> None:
    """Raises where there are no axes beside those of examples and channels to take statistics over.

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


def divides(groups: Any, channels: int, who: str) -> None:
    """Raises unless the groups are of equal size."""
    if not is_whole(groups, 1):
        raise ValueError(f"{who}: groups={groups!r} is not a positive int.")
    if channels % groups:
        near = [g for g in range(1, channels + 1) if channels % g == 0]
        raise ValueError(f"{who}: groups={groups} does not divide {channels} channels. These do: {near}.")


def virtual_batch_size(size: Any, reduction: Reduction, x: Array, who: str) -> None:
    """Raises unless ghosts of this size make up the batch."""
    if not is_whole(size, 1):
        raise ValueError(f"{who}: virtual_batch_size={size!r} is not a positive int.")
    if 0 not in reduction.axes:
        raise ValueError(
            f"{who}: virtual_batch_size={size} groups examples along axis 0 of x, of shape {x.shape}, but that holds "
            f"the channels. Use another channel_axis."
        )
    devices = jax.lax.psum(1, reduction.axis_names)
    batch = devices * x.shape[0]
    # Of a symbolic batch 4 b, a quarter is known to be whole.
    if batch % size != 0:
        if not isinstance(batch, int):
            raise ValueError(f"{who}: virtual_batch_size={size} is not known to divide the batch of {batch} examples.")
        shares = f" ({devices} devices with {x.shape[0]} each)" if reduction.axis_names else ""
        near = [n for n in range(1, batch + 1) if batch % n == 0]
        raise ValueError(
            f"{who}: virtual_batch_size={size} does not divide the batch of {batch} examples{shares}. "
            f"These do: {near}. Or fill the batch up with examples that where excludes."
        )
