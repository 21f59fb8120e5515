"""Any spec as a Flax linen module: reads variables, calls the core, writes state."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, ArrayLike, DTypeLike, Inexact

from jaxnorm import _checks
from jaxnorm._specs import Spec

Initializer = nn.initializers.Initializer


class Norm(nn.Module):
    """A norm as a layer: its parameters in `params`, its state in `batch_stats`.

    y, state = spec.apply(params, state, x, train=train, where=where)

    The fields of the parameters and of the state are variables: `params/{scale,bias}` and
    `batch_stats/{mean,var,count}` for `jn.BatchNorm`. A missing `count` reads as 0, so that the variables of
    `flax.linen.BatchNorm` load. State is written in training only, which needs `mutable="batch_stats"`. Initialisation
    gives the same variables in training and in evaluation, never reduces over devices, and never updates state.

    Paper: that of the spec.

    Attributes:
        spec: any `jn.Spec` whose parameters and state are NamedTuples or None.
        train: whether to use and update the statistics of the batch; here or in the call.
        scale_init, bias_init: in place of 1 and 0.
        param_dtype: of the parameters.

    `__call__(x, *, train=None, where=None)` returns y, of the shape and dtype of `x`.

    Raises:
        ValueError: `train` is given neither here nor in the call, or in both. What `spec.apply` raises.

    >>> import jax
    >>> norm = jn.linen.Norm(jn.BatchNorm(momentum=0.9))
    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> variables = norm.init(jax.random.key(0), x, train=True)
    >>> y, updates = norm.apply(variables, x, train=True, mutable="batch_stats")
    >>> print(updates["batch_stats"]["mean"].round(3))
    [0.2 2. ]
    """

    spec: Spec
    train: bool | None = None
    scale_init: Initializer = nn.initializers.ones
    bias_init: Initializer = nn.initializers.zeros
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Inexact[Array, "..."], *, train: bool | None = None, where: ArrayLike | None = None
    ) -> Inexact[Array, "..."]:
        """Normalizes `x`; see the class."""
        train = _checks.train(nn.merge_param("train", self.train, train), "linen.Norm")
        features = getattr(self.spec, "features", lambda shape: shape[-1])
        initial = self.spec.init(features(jnp.shape(x)), self.param_dtype)
        params, state = _fields(initial[0], self._parameter), _fields(initial[1], self._statistic)
        if self.is_initializing():
            # Mapped axes are not bound here, and there is nothing to learn about the data.
            spec: Any = self.spec
            alone = spec if getattr(spec, "axis_name", None) is None else dataclasses.replace(spec, axis_name=None)
            return alone.apply(params, state, x, train=False, where=where)[0]
        y, state = self.spec.apply(params, state, x, train=train, where=where)
        if train and state is not None:
            for name, value in state._asdict().items():
                self.put_variable("batch_stats", name, value)
        return y

    def _parameter(self, name, initial):
        init = getattr(self, f"{name}_init", None)
        return self.param(name, lambda key: initial if init is None else init(key, initial.shape, initial.dtype))

    def _statistic(self, name, initial):
        if name == "count" and not self.is_initializing() and not self.has_variable("batch_stats", name):
            return initial
        return self.variable("batch_stats", name, lambda: initial).value


def _fields(initial, variable):
    """The same NamedTuple with a variable for each field that is not None."""
    if initial is None:
        return None
    return type(initial)(**{n: v if v is None else variable(n, v) for n, v in initial._asdict().items()})
