"""Any spec as a Flax linen module, and Flax's own norms made accurate: read variables, call the core, write state.

The drop-ins are subclasses of Flax's classes that replace `__call__`. Every argument means what it means there, and
variables and checkpoints are the same. They differ where Flax is wrong:

- Statistics are accurate at any mean, in float32 at least: `use_fast_variance` has no effect, and
  `force_float32_reductions` decides the dtype of the running statistics alone.
- Masked statistics of several devices are merged by their counts. A float mask holds weights.
- Padding may be NaN: no statistic and no gradient sees it. A batch of padding leaves the running statistics alone.
- A mask that fits the first axes of `x` and its last ones alike is an error. Initialisation uses no `axis_name`.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, ArrayLike, DTypeLike, Inexact

from jaxnorm import _checks, _flax
from jaxnorm._specs import Spec

Initializer = nn.initializers.Initializer


class Norm(nn.Module):
    """A norm as a layer: its parameters in `params`, its state in `batch_stats`.

    y, state = spec.apply(params, state, x, train=train, where=where)

    The fields of the parameters and of the state are variables: `params/{scale,bias}` and
    `batch_stats/{mean,var,count}` for `jn.BatchNorm`. A missing `count` reads as 0, so that the variables of
    `flax.linen.BatchNorm` load. State is written in training only, which needs `mutable="batch_stats"`. Initialisation
    gives the same variables in training and in evaluation, never reduces over devices, and never updates state.

    Attributes:
        spec: any `jn.Spec` whose parameters and state are NamedTuples or None. Under `nn.jit`, which hashes modules,
            its leaves are numbers; arrays go through `jax.jit` or `nn.vmap`.
        train: whether to use and update the statistics of the batch; here or in the call.
        scale_init, bias_init: in place of 1 and 0.
        param_dtype: of the parameters.

    `__call__(x, *, train=None, where=None)` returns y, of the shape and dtype of `x`.

    Raises:
        ValueError: `train` is given neither here nor in the call, or in both. What `spec.apply` raises.

    Paper: that of the spec.

    >>> norm = jn.linen.Norm(jn.BatchNorm(momentum=0.9), train=True)
    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> y, updates = norm.apply(norm.init(jax.random.key(0), x), x, mutable="batch_stats")
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


class BatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm`, accurate. `axis_name` may be several names.

    y = γ (x − μ) / √(σ² + ε) + β,    mean ← m · mean + (1 − m) · μ,    var ← m · var + (1 − m) · σ²

    `x` has any shape; y has it, too, and Flax's dtype. Raises ValueError or TypeError if an argument does not fit `x`.
    Paper: Ioffe & Szegedy 2015, "Batch Normalization".

    >>> norm = jn.linen.BatchNorm(use_running_average=False, momentum=0.9)
    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> y, updates = norm.apply(norm.init(jax.random.key(0), x), x, mutable="batch_stats")
    >>> print(updates["batch_stats"]["mean"].round(3))
    [0.2 2. ]
    """

    @nn.compact
    def __call__(self, x, use_running_average=None, *, mask=None):
        """Normalizes `x`; `mask` broadcasts to it, and says what counts."""
        x, starting = jnp.asarray(x), self.is_initializing()
        frozen = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        frozen = _checks.flag(frozen, "BatchNorm", "use_running_average")
        over, features = _flax.batch_norm(self, x, alone=frozen or starting)
        dtype = jnp.float32 if self.force_float32_reductions else self.param_dtype
        shape = [x.shape[a] for a in features]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, dtype)
        var = self.variable("batch_stats", "var", jnp.ones, shape, dtype)
        affine = _affine(self, x, features)
        y, *new = _flax.tracked(self, x, over, features, affine, mask, mean.value, var.value, train=not frozen)
        if not (frozen or starting):
            mean.value, var.value = new
        return y


class LayerNorm(nn.LayerNorm):
    """`flax.linen.LayerNorm`, accurate.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over `reduction_axes`; γ and β along `feature_axes`

    `x` has any shape; y has it, too, and Flax's dtype. Raises ValueError or TypeError if an argument does not fit `x`.
    Paper: Ba, Kiros & Hinton 2016, "Layer Normalization".

    >>> norm = jn.linen.LayerNorm(use_scale=False, use_bias=False)
    >>> print(norm.apply({}, jnp.array([[1e4 + 1, 1e4 + 3]])).round(3))
    [[-1.  1.]]
    """

    @nn.compact
    def __call__(self, x, *, mask=None):
        """Normalizes `x`; `mask` broadcasts to it, and says what counts."""
        return _standardized(self, _flax.layer_norm, x, mask)


class RMSNorm(nn.RMSNorm):
    """`flax.linen.RMSNorm`, accurate.

    y = γ x / √(⟨|x|²⟩ + ε),    mean over `reduction_axes`; γ along `feature_axes`

    `x` has any shape; y has it, too, and Flax's dtype. Raises ValueError or TypeError if an argument does not fit `x`.
    Paper: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".

    >>> print(jn.linen.RMSNorm(use_scale=False).apply({}, jnp.array([3.0, -3.0])).round(3))
    [ 1. -1.]
    """

    @nn.compact
    def __call__(self, x, *, mask=None):
        """Normalizes `x`; `mask` broadcasts to it, and says what counts."""
        return _standardized(self, _flax.rms_norm, x, mask)


class GroupNorm(nn.GroupNorm):
    """`flax.linen.GroupNorm`, accurate.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over `reduction_axes`, in blocks of channels

    `x` has any shape; y has it, too, and Flax's dtype. Raises ValueError or TypeError if an argument does not fit `x`.
    Paper: Wu & He 2018, "Group Normalization".

    >>> norm = jn.linen.GroupNorm(num_groups=2, use_scale=False, use_bias=False)
    >>> print(norm.apply({}, jnp.array([[1.0, 3.0, 10.0, 30.0]])).round(3))
    [[-1.  1. -1.  1.]]
    """

    @nn.compact
    def __call__(self, x, *, mask=None):
        """Normalizes `x`; `mask` broadcasts to it, and says what counts."""
        return _standardized(self, _flax.group_norm, x, mask)


class InstanceNorm(nn.InstanceNorm):
    """`flax.linen.InstanceNorm`, accurate.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over all axes but the first and `feature_axes`

    `x` has any shape; y has it, too, and Flax's dtype. Raises ValueError or TypeError if an argument does not fit `x`.
    Paper: Ulyanov, Vedaldi & Lempitsky 2016, "Instance Normalization".

    >>> norm = jn.linen.InstanceNorm(use_scale=False, use_bias=False)
    >>> print(norm.apply({}, jnp.array([[[1.0], [3.0]]])).squeeze().round(3))
    [-1.  1.]
    """

    @nn.compact
    def __call__(self, x, *, mask=None):
        """Normalizes `x`; `mask` broadcasts to it, and says what counts."""
        return _standardized(self, _flax.instance_norm, x, mask)


def _standardized(module, layout, x, mask):
    x = jnp.asarray(x)
    over, features = layout(module, x, alone=module.is_initializing())
    return _flax.standardized(module, x, over, features, _affine(module, x, features), mask)


def _affine(module, x, features):
    shape = [x.shape[a] for a in features]
    scale = module.param("scale", module.scale_init, shape, module.param_dtype) if module.use_scale else None
    use_bias = getattr(module, "use_bias", False)  # RMSNorm has none
    return scale, module.param("bias", module.bias_init, shape, module.param_dtype) if use_bias else None
