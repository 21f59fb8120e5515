"""Messages about parameters, a state or data that do not fit a spec."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxnorm._types import Affine, Moments, RunningState


def fits_norm(
    spec: Any, axes: Sequence[int], kind: type, params: Any, state: Any, x: Any, shared: Sequence[str] = ()
) -> None:
    """Raises unless parameters of this kind and a state belong to a norm with a scale along `axes`, and fit `x`.

    `shared`: parameters that do not lie along these axes.
    """
    who, what = type(spec).__name__, kind.__name__
    if isinstance(params, RunningState) or isinstance(state, kind):
        raise TypeError(f"{who}.apply: params and state are swapped. The order is apply(params, state, x).")
    if not isinstance(params, kind):
        hint = f": jaxnorm.{what}(**params)" if isinstance(params, dict) else ""
        raise TypeError(f"{who}.apply: params is a {type(params).__name__}. It must be a jaxnorm.{what}{hint}.")
    mean = state.mean if isinstance(state, RunningState) else None
    _same_features(spec, axes, [v for name, v in params._asdict().items() if name not in shared], mean, x)


def fits_scaler(spec: Any, axes: Sequence[int], params: Any, state: Any, x: Array) -> None:
    """Raises unless the state belongs to a feature scaler and fits `x`, and there are no parameters."""
    who = type(spec).__name__
    if params is not None:
        hint = " They are swapped: the order is apply(params, state, x)." if isinstance(params, Moments) else ""
        raise TypeError(f"{who}: params is a {type(params).__name__}, but {who} has none: pass None.{hint}")
    if not isinstance(state, Moments):
        hint = ": jaxnorm.Moments(**state)" if isinstance(state, dict) else ", as init makes it"
        raise TypeError(f"{who}: state is a {type(state).__name__}. It must be a jaxnorm.Moments{hint}.")
    if spec.kind == "minmax" and (state.min is None or state.max is None):
        raise ValueError(f"{who}(kind='minmax'): state has no extremes. Initialise it with this kind.")
    for name, value in state._asdict().items():
        if value is None and (name in ("min", "max") or name.endswith("_residual")):
            continue
        if value is None or np.shape(value) != np.shape(state.mean):
            found = "None" if value is None else f"of shape {np.shape(value)}"
            raise ValueError(
                f"{who}: state.{name} is {found}, and state.mean of shape {np.shape(state.mean)}. Take a state that "
                f"init or apply gave."
            )
    ordered(spec, x.dtype)
    if jnp.iscomplexobj(state.mean) != jnp.iscomplexobj(x):
        raise TypeError(
            f"{who}(kind={spec.kind!r}): x has dtype {x.dtype} and state.mean has {jnp.asarray(state.mean).dtype}. "
            f"Initialise with param_dtype={x.dtype.name!r}."
        )
    _same_features(spec, axes, (), state.mean, x)


def same_entries(state: Any, x: Mapping[str, Any], where: Any, who: str) -> None:
    """Raises unless a mapping of data has states of the same names, and masks of some of them."""
    if not isinstance(state, Mapping) or state.keys() != x.keys():
        found = sorted(state, key=str) if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise ValueError(
            f"{who}: x has entries {sorted(x, key=str)}, and the state is {found}. Give init sizes for all of them."
        )
    if not isinstance(where, Mapping) or not where.keys() <= x.keys():
        raise ValueError(f"{who}: x has entries {sorted(x, key=str)}: where is a mapping of masks for some of them.")


def clips(x: Array, who: str) -> None:
    """Raises where data that have no order are to be clipped."""
    if jnp.iscomplexobj(x):
        raise TypeError(f"{who}: clip is for real numbers, and x has dtype {x.dtype}. Leave it out.")


def ordered(spec: Any, dtype: Any) -> None:
    """Raises where a feature scaler wants extremes, and the data have none."""
    if spec.kind == "minmax" and jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"{type(spec).__name__}(kind='minmax'): the data have dtype {dtype}. Complex numbers have no order, and "
            f"need kind='standard'."
        )


def _same_features(spec: Any, axes: Sequence[int], params: Sequence[Any], mean: Any, x: Any) -> None:
    """Raises unless `x` has as many features as there are means and parameters."""
    shape = np.shape(x)
    if any(not -len(shape) <= a < len(shape) for a in axes):
        raise ValueError(
            f"{type(spec).__name__} normalizes axis {_list(axes)}, which x with shape {shape} does not have."
        )
    found = tuple(shape[a] for a in sorted(a % len(shape) for a in axes))
    for value in (mean, *params):
        initial = found if value is None else np.shape(value)
        # A scale with the dimensions of x may broadcast to it: the verb has the word on that.
        if len(initial) == len(axes) and initial != found and (len(shape) > len(axes) or value is mean):
            raise ValueError(_misfit(spec, axes, initial, found, shape))


def _misfit(spec: Any, axes: Sequence[int], initial: Any, found: Any, shape: Sequence[Any]) -> str:
    who, one = type(spec).__name__, len(axes) == 1
    field = "channel_axis" if hasattr(spec, "channel_axis") else "axis"
    message = (
        f"{who}({field}={getattr(spec, field)}) was initialised for {initial[0] if one else initial} features, but x "
        f"has shape {shape}: its {'axis' if one else 'axes'} {_list(axes)} {'has' if one else 'have'} {_list(found)}."
    )
    if field == "axis" or initial[0] not in shape:
        return message
    axis = shape.index(initial[0])
    layouts = {1: "channels-first data, use channel_axis=1", len(shape) - 1: "channels-last data, use channel_axis=-1"}
    return f"{message} For {layouts.get(axis, f'channels along axis {axis}, use channel_axis={axis}')}."


def _list(numbers: Sequence[Any]) -> str:
    return ", ".join(map(str, numbers))


def stateless(state: Any, who: str) -> None:
    """Raises where a state is given to a norm that has none."""
    if state is not None and not isinstance(state, Affine):
        raise TypeError(f"{who}.apply: state is a {type(state).__name__}, but {who} has none: pass None.")


def normalized_shape(spec: Any, axes: Sequence[int], features: Any) -> tuple[int, ...]:
    """The shape of the normalized axes."""
    shape = tuple(features) if isinstance(features, Sequence) else (features,)
    who = f"{type(spec).__name__}.init({features!r})"
    if any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 0 for n in shape):
        raise TypeError(f"{who}: features is a number of channels, or the shape of the normalized axes.")
    if len(shape) != len(axes):
        raise ValueError(
            f"{who}: axis {_list(axes)} of x are {len(axes)} normalized axes, but there are {len(shape)} sizes. Give "
            f"the shape of the normalized axes, in the order in which x has them."
        )
    return tuple(map(int, shape))


def param_dtype(dtype: Any, who: str) -> Any:
    """A dtype that parameters can have."""
    dtype = jax.dtypes.canonicalize_dtype(jnp.float32 if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"{who}.init: param_dtype={dtype} is not floating point or complex.")
    return dtype
