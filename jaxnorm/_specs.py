"""The nouns: norms as frozen pytrees. Numbers are leaves, to jit, vmap and differentiate; structure is static."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, dataclass_transform, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import ArrayLike, DTypeLike

from jaxnorm import _checks, _fit, _functional
from jaxnorm._functional import Axes, Data, Names, Result
from jaxnorm._over import wide_dtype
from jaxnorm._trees import Affine, RunningStats


@runtime_checkable
class Spec(Protocol):
    """What every norm answers to, so that one can stand where another stood.

    params, state = spec.init(features)        y, state = spec.apply(params, state, x, train=True)

    A norm without state carries None.

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


def _leaf(*, default: ArrayLike | None) -> Any:
    """A number that is part of the pytree; every other field is structure."""
    return dataclasses.field(default=default, metadata={"leaf": True})


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False, field_specifiers=(_leaf,))
def _spec(cls):
    cls = dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)
    leaves = [f.name for f in dataclasses.fields(cls) if "leaf" in f.metadata]
    static = [f.name for f in dataclasses.fields(cls) if "leaf" not in f.metadata]
    return jax.tree_util.register_dataclass(cls, leaves, static)


@_spec
class _Norm:
    """What the norms share: a scale and a bias over some axes, and one call."""

    _verb: ClassVar[Callable[..., Any]]

    use_scale: bool = True
    use_bias: bool = True

    def __post_init__(self):
        for name in self._static():
            value = getattr(self, name)
            if isinstance(value, list | range):
                object.__setattr__(self, name, tuple(value))
            elif isinstance(value, np.integer | np.bool_):
                object.__setattr__(self, name, value.item())

    def _static(self):
        return [f.name for f in dataclasses.fields(self) if "leaf" not in f.metadata]

    def _arguments(self):
        """The keyword arguments of the verb."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if not f.name.startswith("use_")}

    def __eq__(self, other):
        if type(self) is not type(other):
            return NotImplemented
        (mine, structure), (theirs, other_structure) = jax.tree.flatten(self), jax.tree.flatten(other)
        return structure == other_structure and all(map(_same, mine, theirs))

    def __hash__(self):
        for leaf in jax.tree.leaves(self):
            _untraced(leaf)
        return hash((type(self), *(getattr(self, name) for name in self._static())))

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
        return Affine(scale, bias), None

    def apply(
        self, params: Affine, state: Any, x: Data, *, train: bool, where: ArrayLike | None = None
    ) -> tuple[Result, Any]:
        """The normalized `x`, and the state as it was: None. Training and evaluation are the same.

        Args:
            params: `Affine`, from `init`.
            state: None.
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
        _checks.train(train, type(self).__name__)
        _fit.stateless(state, type(self).__name__)
        _fit.check(self, self._axes, params, state, x)
        return type(self)._verb(x, *params, where=where, **self._arguments()), None


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


@_spec
class BatchNorm(_Norm):
    """Batch normalization, `jn.batch_norm` with its parameters and running statistics.

    y = γ (x − μ) / √(σ² + ε) + β,    statistics of the batch in training, running ones in evaluation

    Leaves: `momentum`, `epsilon`. The rest is static. params: `Affine` of (channels,); state: `RunningStats`. With
    `virtual_batch_size`, so many examples in a row are normalized on their own in training.

    Paper: Ioffe & Szegedy 2015, "Batch Normalization".

    >>> bn = jn.BatchNorm(momentum=0.9)
    >>> params, state = bn.init(2)
    >>> y, state = bn.apply(params, state, jnp.array([[1.0, 10.0], [3.0, 30.0]]), train=True)
    >>> print(state.mean.round(3), state.count)
    [0.2 2. ] 1
    """

    channel_axis: int = -1
    momentum: ArrayLike | None = _leaf(default=0.99)
    epsilon: ArrayLike = _leaf(default=1e-5)
    ddof: int = 0
    axis_name: Names | None = None
    virtual_batch_size: int | None = None

    def init(self, features: Axes, dtype: DTypeLike | None = None) -> tuple[Affine, RunningStats]:
        """Parameters (scale 1, bias 0) and running statistics (0, 1), the latter in float32 at least."""
        params, _ = super().init(features, dtype)
        shape = _fit.features(self, self._axes, features)
        mean = jnp.zeros(shape, wide_dtype(jnp.zeros((), _fit.param_dtype(dtype, "BatchNorm"))))
        return params, RunningStats(mean, jnp.ones(shape, mean.real.dtype), jnp.zeros((), jnp.int32))

    def apply(
        self, params: Affine, state: Any, x: Data, *, train: bool, where: ArrayLike | None = None
    ) -> tuple[Result, Any]:
        """The normalized `x`, and in training the updated state. As `jn.batch_norm`."""
        _fit.check(self, self._axes, params, state, x)
        return _functional.batch_norm(x, state, *params, train=train, where=where, **self._arguments())


@_spec
class InstanceNorm(_Norm):
    """Instance normalization, `jn.instance_norm` with its parameters.

    y = γ (x − μ) / √(σ² + ε) + β,    statistics per example and channel

    Leaf: `epsilon`. The rest is static. params: `Affine` of (channels,); state: None.

    Paper: Ulyanov, Vedaldi & Lempitsky 2016, "Instance Normalization".

    >>> norm = jn.InstanceNorm(channel_axis=1)
    >>> y, _ = norm.apply(*norm.init(1), jnp.array([[[1.0, 3.0]]]), train=True)
    >>> print(y.round(3))
    [[[-1.  1.]]]
    """

    _verb = _functional.instance_norm

    channel_axis: int = -1
    batch_axis: Axes | None = 0
    epsilon: ArrayLike = _leaf(default=1e-5)
    axis_name: Names | None = None


@_spec
class LayerNorm(_Norm):
    """Layer normalization, `jn.layer_norm` with its parameters.

    y = γ (x − μ) / √(σ² + ε) + β,    statistics over `axis`

    Leaf: `epsilon`. The rest is static. params: `Affine` of the shape of the normalized axes; state: None.

    Paper: Ba, Kiros & Hinton 2016, "Layer Normalization".

    >>> norm = jn.LayerNorm(axis=(1, 2))
    >>> norm.init((2, 3))[0].scale.shape
    (2, 3)
    """

    _verb = _functional.layer_norm

    axis: Axes = -1
    epsilon: ArrayLike = _leaf(default=1e-5)
    axis_name: Names | None = None


@_spec
class RMSNorm(_Norm):
    """Root mean square normalization, `jn.rms_norm` with its parameters.

    y = γ x / √(⟨|x|²⟩ + ε),    mean over `axis`

    Leaf: `epsilon`. The rest is static. params: `Affine` of the shape of the normalized axes; state: None.

    Paper: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".

    >>> norm = jn.RMSNorm()
    >>> y, _ = norm.apply(*norm.init(2), jnp.array([3.0, -3.0]), train=True)
    >>> print(y.round(3))
    [ 1. -1.]
    """

    _verb = _functional.rms_norm

    use_bias: bool = False
    axis: Axes = -1
    epsilon: ArrayLike = _leaf(default=1e-5)
    axis_name: Names | None = None


@_spec
class GroupNorm(_Norm):
    """Group normalization, `jn.group_norm` with its parameters.

    y = γ (x − μ) / √(σ² + ε) + β,    statistics per example and block of C / groups channels

    Leaf: `epsilon`. The rest is static. params: `Affine` of (channels,); state: None.

    Paper: Wu & He 2018, "Group Normalization".

    >>> norm = jn.GroupNorm(groups=2)
    >>> y, _ = norm.apply(*norm.init(4), jnp.array([[1.0, 3.0, 10.0, 30.0]]), train=True)
    >>> print(y.round(3))
    [[-1.  1. -1.  1.]]
    """

    _verb = _functional.group_norm

    groups: int
    channel_axis: int = -1
    batch_axis: Axes | None = 0
    epsilon: ArrayLike = _leaf(default=1e-5)
    axis_name: Names | None = None

    def init(self, features: Axes, dtype: DTypeLike | None = None) -> tuple[Affine, None]:
        """Parameters (scale 1, bias 0); the groups must divide the channels."""
        (channels,) = _fit.features(self, self._axes, features)
        _checks.divides(self.groups, channels, "GroupNorm.init")
        return super().init(features, dtype)


@_spec
class Identity(_Norm):
    """No normalization: the affine map alone, in the place of a norm.

    y = γ x + β

    Static. params: `Affine` of (channels,); state: None.

    >>> norm = jn.Identity()
    >>> y, _ = norm.apply(*norm.init(2), jnp.array([[3.0, 4.0]]), train=True)
    >>> print(y)
    [[3. 4.]]
    """

    _verb = _functional.affine

    channel_axis: int = -1
