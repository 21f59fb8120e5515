"""Specs are frozen pytrees: numbers are leaves, to jit, vmap and differentiate; structure is static."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar, Protocol, Self, dataclass_transform, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Axes, Data, Implementation, Result
from jaxnorm._specs.fields import leaf, make_pytree
from jaxnorm._state.running import initial
from jaxnorm._types import Affine


@runtime_checkable
class Spec(Protocol):
    """A norm as a value: whatever answers to these calls can stand where another norm stood.

    params, state = spec.init(features)        y, state = spec.apply(params, state, x, train=True)

    A norm without state carries None. y has the shape of `x`. Raises what the norm says of what does not fit.

    >>> isinstance(jn.Identity(), jn.Spec)
    True
    """

    def init(self, features: Axes, param_dtype: DTypeLike | None = None) -> tuple[Any, Any]:
        """Parameters and state for this many channels, or this shape of the normalized axes."""
        ...

    def apply(
        self, params: Any, state: Any, x: Data, *, train: bool, where: ArrayLike | None = None
    ) -> tuple[Result, Any]:
        """The normalized `x`, and the state after it."""
        ...


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False, field_specifiers=(leaf,))
class Value:
    """A spec, whatever it normalizes, is a value: to compare, to hash and to put into a program.

    A subclass is one by being defined, a user's, too: its annotated fields are structure, and `jn.leaf` ones numbers.
    """

    _numbers: ClassVar[tuple[str, ...]]
    _static: ClassVar[tuple[str, ...]]
    _several_channel_axes: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        make_pytree(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            if isinstance(field.default, bool):
                _checks.field_flag(getattr(self, field.name), f"{type(self).__name__}: {field.name}")
        for name in self._static:
            value = _checks.several_axes(getattr(self, name))
            value = value.item() if isinstance(value, np.number | np.bool_) else value
            object.__setattr__(self, name, value)
        who = type(self).__name__
        if not self._several_channel_axes:
            _checks.channel_axis(getattr(self, "channel_axis", -1), who)
        object.__setattr__(self, "dtype", _checks.dtype(getattr(self, "dtype", None), who))

    def _leaves(self) -> tuple[str, ...]:
        """The numbers that mean something: a vmap over a spec maps all of them."""
        return self._numbers

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        (mine, structure), (theirs, other_structure) = jax.tree.flatten(self), jax.tree.flatten(other)
        return structure == other_structure and all(map(_same, mine, theirs))

    def __hash__(self) -> int:
        for number in jax.tree.leaves(self):
            _untraced(number)
        return hash((type(self), *(getattr(self, name) for name in self._static)))

    @property
    def _axes(self) -> tuple[int, ...]:
        """The axes that a scale lies along."""
        axes = getattr(self, "axis", getattr(self, "channel_axis", -1))
        return axes if isinstance(axes, tuple) else (axes,)

    def in_axes(self) -> Self:
        """The axes for `jax.vmap` over a spec of which some numbers are stacked: 0 for these, None for the others.

        >>> specs = jn.BatchNorm(momentum=jnp.array([0.5, 0.9]))
        >>> params, state = jn.BatchNorm().init(1)
        >>> def train(spec):
        ...     return spec.apply(params, state, jnp.array([[1.0], [3.0]]), train=True)[1].mean
        >>> print(jax.vmap(train, in_axes=(specs.in_axes(),))(specs).T.round(3))
        [[1.  0.2]]
        """
        return jax.tree.map(lambda v: 0 if jnp.ndim(v) else None, self)

    def features(self, shape: Sequence[int]) -> int | tuple[int, ...]:
        """The features that `init` wants for data of this shape.

        >>> jn.LayerNorm(axis=(1, 2)).features((32, 10, 64))
        (10, 64)
        """
        name = "axis" if hasattr(self, "axis") else "channel_axis"
        axes = _checks.axes(self._axes, len(shape), f"{type(self).__name__}: {name}")
        return shape[axes[0]] if len(axes) == 1 else tuple(shape[a] for a in axes)


def _untraced(leaf: Any) -> Any:
    if isinstance(leaf, Tracer):
        raise TypeError(
            f"a spec that holds the traced value {leaf} has no hash and no equality. Pass the spec to the transformed "
            f"function as an argument: it is a pytree, and need not be static."
        )
    return leaf


def _same(a: Any, b: Any) -> bool:
    """Whether value, shape and dtype are equal."""
    if a is b:
        return True
    a, b = np.asarray(_untraced(a)), np.asarray(_untraced(b))
    return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())


@cache
def _keywords(verb: Callable[..., Any]) -> list[str]:
    """The keywords that a verb takes beside those of a call of `apply`."""
    parameters = inspect.signature(verb).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("train", "where")]


class Norm(Value):
    """A norm has a scale and a bias over some axes, and one call.

    Static: whether there are a scale and a bias; and of the verb `scale_offset`, `dtype` and `implementation`.
    """

    _verb: ClassVar[Callable[..., Any]]
    _tracking: ClassVar[Callable[..., Any]]
    _params: ClassVar[Any] = Affine
    # Parameters that begin at 1, and not at 0; and those that do not lie along the normalized axes.
    _ones: ClassVar[tuple[str, ...]] = ("scale",)
    _shared: ClassVar[tuple[str, ...]] = ()

    use_scale: bool = True
    use_bias: bool = True
    scale_offset: float = 0.0
    dtype: DTypeLike | None = None
    implementation: Implementation = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale_offset", _checks.scale_offset(self.scale_offset, type(self).__name__))

    @property
    def _tracks(self) -> bool:
        """Whether there are running statistics: of a norm that has no verb without them, always."""
        return not hasattr(self, "_verb")

    @property
    def _weighted(self) -> bool:
        """Whether running averages have to know for how much data they stand."""
        return getattr(self, "debias", False) or getattr(self, "momentum", None) is None

    def _arguments(self) -> dict[str, Any]:
        """The keyword arguments of the verb: those of its fields that the verb knows."""
        verb = type(self)._tracking if self._tracks else type(self)._verb
        return {name: getattr(self, name) for name in _keywords(verb) if name in (*self._numbers, *self._static)}

    def _initial(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """A parameter before training; None for one that is left out."""
        if not getattr(self, f"use_{name}", True):
            return None
        offset = self.scale_offset if name == "scale" else 0
        return jnp.full(shape, (name in self._ones) - offset, dtype)

    @_checks.in_other_words
    def init(self, features: Axes, param_dtype: DTypeLike | None = None) -> tuple[Any, Any]:
        """Parameters (scale 1 − `scale_offset`, bias 0) and state, by shape alone.

        Args:
            features: the number of channels, or the shape of the normalized axes in the order in which x has them.
            param_dtype: that of parameters and state; None is float32.

        Raises:
            TypeError: features are not sizes, or param_dtype is not inexact. ValueError: their number is not that of
                the normalized axes; `groups` does not divide them.

        >>> jn.RMSNorm().init(2)
        (Affine(scale=Array([1., 1.], dtype=float32), bias=None), None)
        """
        shape = _checks.normalized_shape(self, self._axes, features)
        if (groups := getattr(self, "groups", None)) is not None:
            _checks.divides(groups, shape[0], f"{type(self).__name__}.init")
        dtype = _checks.param_dtype(param_dtype, type(self).__name__)
        params = self._params(*(self._initial(name, shape, dtype) for name in self._params._fields))
        return params, initial(shape, dtype, self._weighted) if self._tracks else None

    @_checks.in_other_words
    def apply(
        self, params: Any, state: Any, x: Data, *, train: bool, where: ArrayLike | None = None
    ) -> tuple[Result, Any]:
        """The normalized `x`, and the state after it. Without state, training and evaluation are the same.

        Args:
            params: what `init` gives.
            state: `RunningStats`, or None for a norm without state.
            x: floating point or complex data.
            train: a Python bool.
            where: booleans or weights with the dimensions of `x`: what counts in the statistics.

        Raises:
            TypeError, ValueError: an argument does not fit, as the verb of this norm says.

        >>> norm = jn.LayerNorm()
        >>> y, _ = norm.apply(*norm.init(2), jnp.array([[1.0, 3.0]]), train=True)
        >>> print(y.round(3))
        [[-1.  1.]]
        """
        who, given = type(self).__name__, self._arguments()
        _checks.train(train, who)
        if not self._tracks:
            _checks.stateless(state, who)
        _checks.fits_norm(self, self._axes, self._params, params, state, x, self._shared)
        if self._tracks:
            return type(self)._tracking(x, state, *params, train=train, where=where, **given)
        return type(self)._verb(x, *params, where=where, **given), None
