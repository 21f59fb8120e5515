"""What the nouns share: frozen pytrees. Numbers are leaves, to jit, vmap and differentiate; structure is static."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, dataclass_transform, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import ArrayLike, DTypeLike

from jaxnorm import _checks, _fit
from jaxnorm._functional import Axes, Data, Result
from jaxnorm._running import initial
from jaxnorm._trees import Affine, GatedAffine


@runtime_checkable
class Spec(Protocol):
    """What every norm answers to, so that one can stand where another stood.

    params, state = spec.init(features)        y, state = spec.apply(params, state, x, train=True)

    A norm without state carries None. y has the shape and dtype of `x`. Raises what the norm says of what does not fit.

    >>> isinstance(jn.Identity(), jn.Spec)
    True
    """

    def init(self, features: Axes, dtype: DTypeLike | None = None) -> tuple[Any, Any]:
        """Parameters and state for this many channels, or this shape of the normalized axes."""
        ...

    def apply(
        self, params: Any, state: Any, x: Data, *, train: bool, where: ArrayLike | None = None
    ) -> tuple[Result, Any]:
        """The normalized `x`, and the state after it."""
        ...


def leaf(*, default: ArrayLike | None) -> Any:
    """A number that is part of the pytree; every other field is structure."""
    return dataclasses.field(default=default, metadata={"leaf": True})


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False, field_specifiers=(leaf,))
def spec(cls):
    """A frozen dataclass, and a pytree."""
    cls = dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)
    cls._numbers = tuple(f.name for f in dataclasses.fields(cls) if "leaf" in f.metadata)
    cls._static = tuple(f.name for f in dataclasses.fields(cls) if "leaf" not in f.metadata)

    def structure(spec):
        return tuple(getattr(spec, name) for name in cls._static)

    def flatten(spec):
        return [getattr(spec, name) for name in spec._leaves()], structure(spec)

    def flatten_with_keys(spec):
        return [(jax.tree_util.GetAttrKey(name), getattr(spec, name)) for name in spec._leaves()], structure(spec)

    def unflatten(structure, leaves):
        # Not by the constructor: JAX unflattens with placeholders.
        spec = object.__new__(cls)
        vars(spec).update(zip(cls._static, structure, strict=True))
        vars(spec).update(zip(spec._leaves(), leaves, strict=True))
        return spec

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


@spec
class Frozen:
    """What specs are, whatever they normalize: values to compare, to hash and to put into a program."""

    _numbers: ClassVar[tuple[str, ...]]
    _static: ClassVar[tuple[str, ...]]

    def __post_init__(self):
        for name in self._static:
            value = getattr(self, name)
            if isinstance(value, list | range):
                object.__setattr__(self, name, tuple(value))
            elif isinstance(value, np.integer | np.bool_):
                object.__setattr__(self, name, value.item())

    def _leaves(self):
        """The numbers that mean something: a vmap over a spec maps all of them."""
        return self._numbers

    def __eq__(self, other):
        if type(self) is not type(other):
            return NotImplemented
        (mine, structure), (theirs, other_structure) = jax.tree.flatten(self), jax.tree.flatten(other)
        return structure == other_structure and all(map(_same, mine, theirs))

    def __hash__(self):
        for leaf in jax.tree.leaves(self):
            _untraced(leaf)
        return hash((type(self), *(getattr(self, name) for name in self._static)))

    @property
    def _axes(self):
        """The axes that a scale lies along."""
        axes = getattr(self, "axis", getattr(self, "channel_axis", -1))
        return axes if isinstance(axes, tuple) else (axes,)

    def features(self, shape: Sequence[int]) -> int | tuple[int, ...]:
        """What `init` wants for data of this shape.

        >>> jn.LayerNorm(axis=(1, 2)).features((32, 10, 64))
        (10, 64)
        """
        axes = _checks.axes(self._axes, len(shape), type(self).__name__)
        return shape[axes[0]] if len(axes) == 1 else tuple(shape[a] for a in axes)


def _untraced(leaf):
    if isinstance(leaf, Tracer):
        raise TypeError(
            f"a spec that holds the traced value {leaf} has no hash and no equality. Pass the spec to the transformed "
            f"function as an argument: it is a pytree, and need not be static."
        )
    return leaf


def _same(a, b):
    """Equal value, shape and dtype."""
    if a is b:
        return True
    a, b = np.asarray(_untraced(a)), np.asarray(_untraced(b))
    return a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all())


@spec
class Norm(Frozen):
    """What the norms share: a scale and a bias over some axes, and one call."""

    _verb: ClassVar[Callable[..., Any]]
    _tracking: ClassVar[Callable[..., Any]]
    _params: ClassVar[type] = Affine

    use_scale: bool = True
    use_bias: bool = True

    @property
    def _tracks(self) -> bool:
        """Whether there are running statistics."""
        return False

    def _arguments(self):
        """The keyword arguments of the verb."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if not f.name.startswith("use_")}

    def init(self, features: Axes, dtype: DTypeLike | None = None) -> tuple[Affine, Any]:
        """Parameters (scale 1, bias 0) and state, by shape alone.

        Args:
            features: the number of channels, or the shape of the normalized axes in the order in which x has them.
            dtype: that of the parameters; None is float32.

        Raises:
            TypeError: features are not sizes, or dtype is not inexact. ValueError: their number is not that of the
                normalized axes; `groups` does not divide them.

        >>> jn.RMSNorm().init(2)
        (Affine(scale=Array([1., 1.], dtype=float32), bias=None), None)
        """
        shape = _fit.features(self, self._axes, features)
        dtype = _fit.param_dtype(dtype, type(self).__name__)
        scale = jnp.ones(shape, dtype) if self.use_scale else None
        bias = jnp.zeros(shape, dtype) if self.use_bias else None
        return Affine(scale, bias), initial(shape, dtype) if self._tracks else None

    def apply(
        self, params: Affine | GatedAffine, state: Any, x: Data, *, train: bool, where: ArrayLike | None = None
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
            _fit.stateless(state, who)
        _fit.check(self, self._axes, self._params, params, state, x)
        if self._tracks:
            return type(self)._tracking(x, state, *params, train=train, where=where, **given)
        return type(self)._verb(x, *params, where=where, **given), None
