"""Scaling input features: moments of all data, then standardize."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Axes, Names
from jaxnorm._core.numerics import deviation, included, narrow, wide_dtype, widest
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.sharding import place_like, reshard_as
from jaxnorm._specs.base import Value
from jaxnorm._specs.fields import leaf
from jaxnorm._state.stream import feature_moments, merge_pair, with_residuals
from jaxnorm._types import Moments

_KINDS = ("standard", "minmax")


class FeatureScaler(Value):
    """Input features on one scale, by exact statistics of all data seen.

    "standard":    y = (x − μ) / σ, or x / σ without `center`    "minmax":    y = (x − min) / (max − min)

    So that a feature in thousands does not drown one in tens. In training, each batch is merged into the state, and
    scaled by the result; evaluation only scales. How the data are cut into batches, of whatever sizes, and their order
    do not matter, up to rounding. A constant feature is divided by 1, and so is one whose M2 is 0 or ∞ in its dtype: in
    float32, choose units in which σ is above 1e-17, and n σ² below 3e38. Before any data, y = x.

    As a layer of a model it goes on learning while this trains, and each epoch counts the data again. To have it fixed,
    show it the data first, once, and then use it with `train=False`. `jn.recalibrate` leaves it as it is.

    Leaf: `clip`, None or the largest |y|. Static: `channel_axis`, the axis of features, or several, each of whose
    positions is one; `kind`; `center`, False for rewards or returns, whose sign counts; `axis_name`, mapped axes over
    which the data are sharded; `dtype`, that of y, None is that of `x`.
    params: None; state: `Moments` of (channels,). A missing entry, excluded by `where`, may be NaN, and is scaled
    as the mean of its feature. Mappings of features, data and masks, as observations of several kinds, have mappings
    of states and of y. Raises ValueError where `kind` is another one, or does not go with `center`.

    Paper: LeCun, Bottou, Orr & Müller 1998, "Efficient BackProp", section 4.3; for merging, Chan, Golub & LeVeque 1979.

    >>> scaler = jn.FeatureScaler()
    >>> params, state = scaler.init(2)
    >>> x = jnp.array([[20.0, 10000.0], [40.0, 90000.0]])  # years, kilometres
    >>> y, state = scaler.apply(params, state, x, train=True)
    >>> print(y.round(3))
    [[-1. -1.]
     [ 1.  1.]]
    >>> print(scaler.inverse(state, jnp.array([[1.0, 0.5]])))
    [[4.e+01 7.e+04]]
    """

    _several_channel_axes: ClassVar[bool] = True

    channel_axis: Axes = -1
    kind: Literal["standard", "minmax"] = "standard"
    center: bool = True
    clip: ArrayLike | None = leaf(default=None)
    axis_name: Names | None = None
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in _KINDS:
            raise ValueError(f"FeatureScaler: kind={self.kind!r} is none of {_KINDS}.")
        if self.kind == "minmax" and not self.center:
            raise ValueError("FeatureScaler: center=False goes with kind='standard': 0 to 1 is from min to max.")

    @_checks.in_other_words
    def init(self, features: Any, param_dtype: DTypeLike | None = None) -> tuple[None, Any]:
        """No parameters, and the state of a scaler that has seen nothing.

        Args:
            features: the number of features, or their shape along several axes; or a mapping of these.
            param_dtype: that of the data; None is float32. The state has float32 at least.

        Raises:
            TypeError: features are not a number, or param_dtype is not inexact, or complex where order counts.

        >>> jn.FeatureScaler().init(2)[1].mean
        Array([0., 0.], dtype=float32)
        """
        if isinstance(features, Mapping):
            return None, {name: self.init(sizes, param_dtype)[1] for name, sizes in features.items()}
        shape = _checks.normalized_shape(self, self._axes, features)
        of_data = _checks.param_dtype(param_dtype, "FeatureScaler")
        _checks.ordered(self, of_data)
        return None, Moments.zeros(shape, of_data, extremes=self.kind == "minmax")

    def apply(self, params: None, state: Any, x: Any, *, train: bool, where: Any = None) -> tuple[Any, Any]:
        """The scaled `x`, and the state after it.

        Args:
            params: None.
            state: `Moments`, or a mapping of them.
            x: floating point, or for kind="standard" complex, with the features along `channel_axis`; or a mapping.
            train: a Python bool: merge `x` into the state first, or not.
            where: booleans or weights with the dimensions of `x`: what counts; for a mapping, one of them.

        Returns:
            y, with the shape of `x`, and the state. A feature with NaN or Inf in what counts or in its sum,
            or without any data, keeps its state; y shows the NaN. The new state has no derivative in `x`.

        Raises:
            TypeError: `x` is integer or boolean, or complex where order counts; `train` is traced; there are params.
            ValueError: an argument does not fit `x`. NameError: an unbound name.

        >>> scaler = jn.FeatureScaler(kind="minmax")
        >>> y, _ = scaler.apply(*scaler.init(1), jnp.array([[1.0], [2.0], [5.0]]), train=True)
        >>> print(y.T)
        [[0.   0.25 1.  ]]
        """
        who = "FeatureScaler"
        train = _checks.train(train, who)
        if isinstance(x, Mapping):
            masks = {} if where is None else where
            _checks.same_entries(state, x, masks, who)
            each = {k: self.apply(params, state[k], v, train=train, where=masks.get(k)) for k, v in x.items()}
            return {k: y for k, (y, _) in each.items()}, {k: new for k, (_, new) in each.items()}
        x = self._fitting(params, state, x)
        where = _checks.where(where, x, who)
        by = with_residuals(state)
        if train:
            state = by
            channels = self._channels(x)
            axes = tuple(a for a in range(x.ndim) if a not in channels)
            new = feature_moments(Reduction(axes, _checks.names(self.axis_name, who)), x, where, state)
            new = jax.tree.map(lambda new, old: reshard_as(new.reshape(old.shape), old), new, state)
            by, state = merge_pair(state, new), merge_pair(state, lax.stop_gradient(new))
        output_dtype = _checks.output_dtype(self.dtype, x, who)
        widths = wide_dtype(x), state.mean.dtype, wide_dtype(jax.ShapeDtypeStruct((), output_dtype))
        x_ = x.astype(widest(*widths))
        origin, residual, unit = self._measure(by, x_)
        if where is not None:
            x_ = jnp.where(included(where) | jnp.isfinite(x_), x_, self._vector(by.mean, x_))
        y = deviation(x_, origin, residual) / unit if self.center else x_ / unit
        if self.clip is not None:
            _checks.clips(x, who)
            clip = _checks.number(self.clip, x_, who, "clip").astype(y.dtype)
            y = jnp.clip(y, -clip, clip)
        return narrow(y, where, output_dtype), state

    def inverse(self, state: Any, y: Any) -> Any:
        """The data that `apply` scaled to `y`.

        x = μ + σ y,    or    x = σ y    or    x = min + (max − min) y

        Args:
            state: `Moments`, or a mapping of them.
            y: scaled data, with the features along `channel_axis`; or a mapping. What was clipped stays clipped.

        Returns:
            x, with the shape and dtype of `y`.

        Raises:
            TypeError: `y` is integer or boolean. ValueError: it has other features than the state.

        >>> scaler = jn.FeatureScaler()
        >>> _, state = scaler.apply(*scaler.init(1), jnp.array([[10.0], [30.0]]), train=True)
        >>> print(scaler.inverse(state, jnp.array([[-1.0], [0.0]])).T)
        [[10. 20.]]
        """
        if isinstance(y, Moments):
            raise TypeError("FeatureScaler.inverse: y is Moments, and the state comes first: inverse(state, y).")
        if isinstance(y, Mapping):
            _checks.same_entries(state, y, {}, "FeatureScaler")
            return {name: self.inverse(state[name], v) for name, v in y.items()}
        y = self._fitting(None, state, y)
        state = with_residuals(state)
        y_ = y.astype(widest(wide_dtype(y), state.mean.dtype))
        origin, residual, unit = self._measure(state, y_)
        return ((unit * y_ + residual) + origin if self.center else unit * y_).astype(y.dtype)

    def _fitting(self, params: Any, state: Any, x: Any) -> Array:
        """`x` as an array, which fits the scaler and its state."""
        x = _checks.data(x, "FeatureScaler")
        self._channels(x)
        _checks.fits_scaler(self, self._axes, params, state, x)
        return x

    def _channels(self, x: Array) -> tuple[int, ...]:
        """The axes of `x` that hold features."""
        return _checks.axes(self._axes, x.ndim, "FeatureScaler: channel_axis")

    def _measure(self, state: Any, x: Array) -> tuple[Any, Any, Any]:
        """Where a feature has its 0, in two numbers, and its 1, as they meet `x`: x = origin + residual + unit · y."""
        if self.kind == "standard":
            # A mean in two numbers is as exact as this: what deviates less is a constant that was rounded.
            least = 64 * jnp.finfo(state.std.dtype).eps ** 2 * abs(state.mean)
            spread = jnp.where((state.std > least) & jnp.isfinite(state.std), state.std, 0)
            origin, residual = state.mean, state.mean_residual
        else:
            origin = jnp.where(state.count > 0, state.min, 0)
            residual, spread = jnp.zeros_like(origin), jnp.where(state.count > 0, state.max - origin, 0)
        return tuple(self._vector(v, x) for v in (origin, residual, jnp.where(spread > 0, spread, 1)))

    def _vector(self, v: Array, x: Array) -> Any:
        channels = self._channels(x)
        return place_like(v.reshape([n if a in channels else 1 for a, n in enumerate(x.shape)]), x).astype(x.dtype)
