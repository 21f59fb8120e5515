"""Any spec as a Haiku module, and Haiku's batch norm made accurate; Haiku is loaded with this module, at first use."""

from collections.abc import Callable, Sequence
from typing import Any

import haiku as hk
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Data, Result
from jaxnorm._core.numerics import real_dtype, wide_dtype
from jaxnorm._core.reduction import Reduction
from jaxnorm._functional import normalize_tracking
from jaxnorm._specs.base import Spec
from jaxnorm._types import RunningStats, fields, with_given

__all__ = ["BatchNorm", "Norm"]


def __dir__() -> list[str]:
    return __all__


class Norm(hk.Module):
    """A norm as a layer: its parameters by name, its state as one value.

    y, state = spec.apply(params, state, x, train=is_training, where=where)

    Fields of parameters are Haiku's parameters `scale`, `bias`, …, of the shapes that `spec.init` gives. The state is
    Haiku's state `state`, a NamedTuple as the spec has it: `jn.recalibrate` and the like find it.

    Args:
        spec: any `jn.Spec`.
        scale_init, bias_init: initializers in place of what `spec.init` gives; `param_dtype`, in place of float32.
        name: of the module.

    `__call__(x, is_training=None, test_local_stats=False, *, train=None, where=None, scale=None, bias=None)` returns y,
    of the shape of `x`. `is_training` and `train` say the same thing; with `test_local_stats`, evaluation is by the
    batch, too, and the state stays. Raises ValueError where training is said nowhere or twice, and what the spec
    raises. Paper: that of the spec.

    >>> import haiku as hk
    >>> net = hk.transform_with_state(lambda x: jn.haiku.Norm(jn.BatchNorm(momentum=0.9))(x, is_training=True))
    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> params, state = net.init(None, x)
    >>> y, state = net.apply(params, state, None, x)
    >>> print(state["norm"]["state"].mean.round(3))
    [0.2 2. ]
    """

    def __init__(
        self, spec: Spec, *, scale_init: Callable[..., Array] | None = None,
        bias_init: Callable[..., Array] | None = None, param_dtype: DTypeLike = jnp.float32, name: str | None = None,
    ):  # fmt: skip
        super().__init__(name)
        _checks.spec(spec, "haiku.Norm")
        self.spec, self.param_dtype = spec, param_dtype
        self.inits = {"scale": scale_init, "bias": bias_init}

    def __call__(
        self, x: Data, is_training: bool | None = None, test_local_stats: bool = False, *, train: bool | None = None,
        where: ArrayLike | None = None, scale: ArrayLike | None = None, bias: ArrayLike | None = None,
    ) -> Result:  # fmt: skip
        who = "haiku.Norm"
        _checks.given_twice(self.spec, who, scale=scale, bias=bias)
        train = _checks.training(is_training, train, who, "is_training")
        features = getattr(self.spec, "features", lambda shape: shape[-1])
        params, initial = self.spec.init(features(jnp.shape(x)), self.param_dtype)
        new = {name: None if v is None else self._parameter(name, v) for name, v in fields(params).items()}
        params = with_given(params if params is None else type(params)(**new), scale=scale, bias=bias)
        old: Any = None if initial is None else hk.get_state("state", (), init=lambda *_: initial)
        y, state = self.spec.apply(params, old, x, train=train or test_local_stats, where=where)
        if state is not old and (train or not test_local_stats):
            hk.set_state("state", state)
        return y

    def _parameter(self, name: str, initial: Array) -> Array:
        return hk.get_parameter(name, initial.shape, initial.dtype, self.inits.get(name) or (lambda *_: initial))


class BatchNorm(hk.BatchNorm):
    """`hk.BatchNorm`, accurate: same arguments, parameters and state. Paper: Ioffe & Szegedy 2015.

    y = γ (x − μ) / √(σ² + ε) + β,    mean and var debiased averages of μ and σ², by `decay_rate`

    y has the shape and dtype of `x`. Haiku's variance is ⟨x²⟩ − ⟨x⟩², which a large mean turns negative, and its
    averages have the dtype of `x`, in which they stand still if it is bfloat16; here they are in float32 at least. A
    channel with NaN leaves them alone. Raises ValueError or TypeError where an argument does not fit `x`.

    >>> import haiku as hk
    >>> norm = lambda x: jn.haiku.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)(x, is_training=True)
    >>> net = hk.transform_with_state(norm)
    >>> x = jnp.array([[1e4 + 1], [1e4 + 3]])
    >>> y, state = net.apply(*net.init(None, x), None, x)
    >>> print(y.T.round(3), state["batch_norm/~/var_ema"]["average"].round(3))
    [[-1.  1.]] [[1.]]
    """

    def __call__(
        self, inputs: Data, is_training: bool, test_local_stats: bool = False, scale: ArrayLike | None = None,
        offset: ArrayLike | None = None,
    ) -> Result:  # fmt: skip
        who = "haiku.BatchNorm"
        x = _checks.data(inputs, who, "inputs")
        axes = [a for a in range(x.ndim) if a != self.channel_index % x.ndim] if self.axis is None else self.axis
        axes = _checks.axes(axes, x.ndim, f"{who}: axis")
        kept = tuple(a for a in range(x.ndim) if a not in axes)
        shape = [x.shape[a] if a in kept else 1 for a in range(x.ndim)]
        scale = self._affine("scale", scale, self.create_scale, self.scale_init, shape, x)
        offset = self._affine("offset", offset, self.create_offset, self.offset_init, shape, x)
        is_training = _checks.flag(is_training, who, "is_training")
        own = is_training or test_local_stats
        names = _checks.names(self.cross_replica_axis, who) if own else ()
        groups = self.cross_replica_axis_index_groups
        groups = None if groups is None else tuple(map(tuple, groups))
        averages = self._averages(x, kept, is_training, own)
        # Averages with a momentum of 0 are the statistics of the batch, and as they were in a channel without any.
        y, stats = normalize_tracking(
            x, averages, Reduction(axes, names, axis_index_groups=groups), kept, scale, offset, train=own,
            momentum=0.0, ddof=0, epsilon=self.eps, where=None, who=who,
        )  # fmt: skip
        if is_training and stats is not None:
            self.mean_ema(stats.mean.reshape(shape))
            self.var_ema(stats.var.reshape(shape))
        return y

    def _affine(self, name: str, given: Any, learned: bool, init: Any, shape: Sequence[int], x: Array) -> Any:
        if not learned:
            # It broadcasts to the data as in NumPy.
            return given if given is None else jnp.reshape(given, (1,) * (x.ndim - jnp.ndim(given)) + jnp.shape(given))
        if given is not None:
            raise ValueError(f"haiku.BatchNorm: {name} is given in the call, and create_{name}=True learns one.")
        return hk.get_parameter(name, shape, x.dtype, init)

    def _averages(self, x: Array, kept: Sequence[int], is_training: bool, own: bool) -> RunningStats:
        """The averages; before there are any, and where they are not needed, what averages begin with here."""
        vector = [x.shape[a] for a in kept]
        if own and (hk.running_init() or not is_training):
            return RunningStats(jnp.zeros(vector, wide_dtype(x)), jnp.ones(vector, real_dtype(x)))
        mean, var = self.mean_ema.average.reshape(vector), self.var_ema.average.reshape(vector)
        # Haiku's ⟨x²⟩ − ⟨x⟩² is rounded to below 0 for a constant; ε covers that.
        stats = RunningStats(mean, jnp.where((var < 0) & (var > -self.eps), 0, var))
        if is_training:
            _checks.averages(stats, "haiku.BatchNorm")
        return stats
