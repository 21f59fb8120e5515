"""Any spec as a Flax linen module, and Flax's own norms made accurate: read variables, call the core, write state.

The drop-ins are subclasses that replace `__call__`: arguments mean what they mean in Flax, checkpoints are the same.
All of them take `scale_offset`, batch norm `ddof`, too, by name: as those of `jn.batch_norm`. With an offset, the
initializer `ones`, which is the default, makes offset and scale together 1.
They differ where Flax is wrong: statistics are accurate at any mean, in float32 at least, so `use_fast_variance` has no
effect, and `force_float32_reductions` decides the dtype of running statistics alone. Masked statistics of devices are
merged by count; float masks are weights; padding may be NaN, reaches no gradient, and leaves running statistics alone.
A mask that fits the first axes of `x` and its last ones alike is an error.
"""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import attention, normalization
from flax.linen.initializers import Initializer
from jaxtyping import Array, ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Data, Result
from jaxnorm._flax import layout
from jaxnorm._flax.call import initial_scale, standardized, tracked
from jaxnorm._flax.layout import Layout
from jaxnorm._flax.linen_folding import fold
from jaxnorm._flax.linen_inspection import inspect, tabulate
from jaxnorm._flax.linen_models import frozen, recalibrate
from jaxnorm._flax.linen_state import is_recalibrating, with_added, write
from jaxnorm._flax.linen_weights import SpectralNorm, StdConv, WeightNorm
from jaxnorm._flax.patching import replaced
from jaxnorm._specs.base import Spec
from jaxnorm._specs.frozen import unsynced
from jaxnorm._types import RunningStats, fields, with_given

__all__ = [
    "BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "Norm", "RMSNorm", "SpectralNorm", "StdConv", "WeightNorm",
    "fold", "frozen", "inspect", "patched", "recalibrate", "tabulate",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


class Norm(nn.Module):
    """A norm as a layer: its parameters in `params`, its state in `batch_stats`.

    y, state = spec.apply(params, state, x, train=train, where=where)

    Fields of parameters and state are variables: `params/{scale,bias}`, and `batch_stats/{mean,var}` for
    `jn.BatchNorm`, as those of `flax.linen.BatchNorm`; `weight_sum` besides where the state has one. State is written
    where it is new. Initialisation is the same in training and evaluation, never reduces over devices or updates state.

    Attributes:
        spec: any `jn.Spec` whose parameters and state are NamedTuples, dicts or None. `nn.jit` can't hash arrays in it.
        train, use_running_average: whether to use and update the statistics of the batch, in either way to say it; here
            or in the call.
        scale_init, bias_init, mean_init, var_init: initializers in place of what `spec.init` gives, ones that box it
            (`nn.with_logical_partitioning`) included; `param_dtype`, in place of float32.

    `__call__(x, *, train=None, use_running_average=None, where=None, scale=None, bias=None)` returns y, of the shape
    of `x`. A scale or bias in the call is for specs with `use_scale=False` or `use_bias=False`: adaptive norms. It
    raises ValueError where `train` is given nowhere or twice, and what `spec.apply` raises. Paper: that of the spec.

    >>> norm = jn.linen.Norm(jn.BatchNorm(momentum=0.9), train=True)
    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> y, updates = norm.apply(norm.init(jax.random.key(0), x), x, mutable="batch_stats")
    >>> print(updates["batch_stats"]["mean"].round(3))
    [0.2 2. ]
    """

    _is_norm: ClassVar[bool] = True

    spec: Spec
    train: bool | None = None
    use_running_average: bool | None = None
    scale_init: Initializer | None = None
    bias_init: Initializer | None = None
    mean_init: Initializer | None = None
    var_init: Initializer | None = None
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Data, *, train: bool | None = None, use_running_average: bool | None = None,
        where: ArrayLike | None = None, scale: ArrayLike | None = None, bias: ArrayLike | None = None,
    ) -> Result:  # fmt: skip
        who = "linen.Norm"
        _checks.spec(self.spec, who)
        _checks.given_twice(self.spec, who, scale=scale, bias=bias)
        if is_recalibrating(self):
            _checks.ignored_flag(train, who, "train")
            _checks.ignored_flag(use_running_average, who, "use_running_average")
            train = True
        else:
            here = _checks.mode(self.train, self.use_running_average, who)
            train = nn.merge_param("train", here, _checks.mode(train, use_running_average, who))
        features = getattr(self.spec, "features", lambda shape: shape[-1])
        initial = self.spec.init(features(np.shape(x)), self.param_dtype)
        params, state = map(self._variables, initial, (self._parameter, self._statistic))
        params, state = with_given(params, scale=scale, bias=bias), with_added(self, state)
        if self.is_initializing():
            # There is nothing to learn about the data here.
            return unsynced(self.spec).apply(params, state, x, train=False, where=where)[0]
        y, new = self.spec.apply(params, state, x, train=train, where=where)
        if new is not state:
            write(self, new)
        return y

    def _variables(self, initial: Any, variable: Callable[[str, Any], Any]) -> Any:
        new = {name: v if v is None else variable(name, v) for name, v in fields(initial).items()}
        return initial if initial is None else type(initial)(**new)

    def _parameter(self, name: str, initial: Any) -> Any:
        init = getattr(self, f"{name}_init", None)
        return self.param(name, lambda key: initial if init is None else init(key, initial.shape, initial.dtype))

    def _statistic(self, name: str, initial: Any) -> Any:
        if name == "weight_sum" and not self.is_initializing() and not self.has_variable("batch_stats", name):
            # The state decides: averages that came without one, from Flax say, stay without.
            return None
        init = getattr(self, f"{name}_init", None)
        shape = initial.shape, initial.dtype
        first = (lambda: initial) if init is None else (lambda: init(self.make_rng("params"), *shape))
        return self.variable("batch_stats", name, first).value


class BatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm`, accurate. Paper: Ioffe & Szegedy 2015.

    y = γ (x − μ) / √(σ² + ε) + β,    mean ← m · mean + (1 − m) · μ,    var ← m · var + (1 − m) · σ²
    y has the shape of `x` and Flax's dtype. Raises ValueError or TypeError where an argument does not fit `x`.

    >>> norm = jn.linen.BatchNorm(use_running_average=False, momentum=0.9)
    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> y, updates = norm.apply(norm.init(jax.random.key(0), x), x, mutable="batch_stats")
    >>> print(updates["batch_stats"]["mean"].round(3))
    [0.2 2. ]
    """

    scale_offset: float = dataclasses.field(default=0.0, kw_only=True)
    ddof: int = dataclasses.field(default=0, kw_only=True)

    @nn.compact
    def __call__(self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None) -> Array:
        evaluate = False
        if is_recalibrating(self):
            _checks.ignored_flag(use_running_average, "BatchNorm", "use_running_average")
        else:
            evaluate = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
            evaluate = _checks.flag(evaluate, "BatchNorm", "use_running_average")
        alone = evaluate or self.is_initializing()
        norm_layout = layout.batch_norm(self, x, alone)
        dtype = jnp.float32 if self.force_float32_reductions else self.param_dtype
        shape = [x.shape[a] for a in norm_layout.feature_axes]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, dtype)
        var = self.variable("batch_stats", "var", jnp.ones, shape, dtype)
        affine = _affine(self, x, norm_layout)
        state = with_added(self, RunningStats(mean.value, var.value))
        # As in Flax, gradients flow through new running statistics: all that they need is kept anyway.
        y, state = tracked(self, x, norm_layout, affine, mask, state, train=not evaluate, differentiable=True)
        if not alone:
            write(self, state)
        return y


class LayerNorm(nn.LayerNorm):
    """`flax.linen.LayerNorm`, accurate. Paper: Ba, Kiros & Hinton 2016.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over `reduction_axes`, γ and β along `feature_axes`
    y has the shape of `x` and Flax's dtype. Raises ValueError or TypeError where an argument does not fit `x`.

    >>> print(jn.linen.LayerNorm(use_scale=False, use_bias=False).apply({}, jnp.array([[1.0, 3.0]])).round(3))
    [[-1.  1.]]
    """

    scale_offset: float = dataclasses.field(default=0.0, kw_only=True)

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        return _standardized(self, layout.layer_norm, x, mask)


class RMSNorm(nn.RMSNorm):
    """`flax.linen.RMSNorm`, accurate. Paper: Zhang & Sennrich 2019.

    y = γ x / √(⟨|x|²⟩ + ε),    mean over `reduction_axes`, γ along `feature_axes`
    y has the shape of `x` and Flax's dtype. Raises ValueError or TypeError where an argument does not fit `x`.

    >>> print(jn.linen.RMSNorm(use_scale=False).apply({}, jnp.array([3.0, -3.0])).round(3))
    [ 1. -1.]
    """

    scale_offset: float = dataclasses.field(default=0.0, kw_only=True)

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        return _standardized(self, layout.rms_norm, x, mask)


class GroupNorm(nn.GroupNorm):
    """`flax.linen.GroupNorm`, accurate. Paper: Wu & He 2018.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over `reduction_axes`, in blocks of channels
    y has the shape of `x` and Flax's dtype. Raises ValueError or TypeError where an argument does not fit `x`.

    >>> jn.linen.GroupNorm(2, use_scale=False, use_bias=False).apply({}, jnp.array([1.0, 3.0, 5.0, 9.0])).round(3)
    Array([-1.,  1., -1.,  1.], dtype=float32)
    """

    scale_offset: float = dataclasses.field(default=0.0, kw_only=True)

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        return _standardized(self, layout.group_norm, x, mask)


class InstanceNorm(nn.InstanceNorm):
    """`flax.linen.InstanceNorm`, accurate. Paper: Ulyanov, Vedaldi & Lempitsky 2016.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over all axes but the first and `feature_axes`
    y has the shape of `x` and Flax's dtype. Raises ValueError or TypeError where an argument does not fit `x`.

    >>> jn.linen.InstanceNorm(use_scale=False, use_bias=False).apply({}, jnp.array([[[1.0], [3.0]]])).squeeze().round(3)
    Array([-1.,  1.], dtype=float32)
    """

    scale_offset: float = dataclasses.field(default=0.0, kw_only=True)

    @nn.compact
    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        return _standardized(self, layout.instance_norm, x, mask)


_DROP_INS = BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm, SpectralNorm, WeightNorm


def patched() -> AbstractContextManager[None]:
    """Flax's names for its norms stand for ours within: for models whose code says `nn.BatchNorm`.

    flax.linen.BatchNorm = jaxnorm.linen.BatchNorm, and so for the others, until the end of the block

    Write it around what calls the model. What was bound before is not reached: a class in the default of a
    function or a field, `from flax.linen import BatchNorm`; import such code within the block, too. Norms in Flax's
    attention are ours as well. Variables keep their names, shapes and dtypes. It holds for all threads. A compiled
    function keeps what it was traced with, before or within.

    >>> with jn.linen.patched():
    ...     y = nn.LayerNorm(use_scale=False, use_bias=False).apply({}, jnp.array([[1e4 + 1, 1e4 + 3]]))
    >>> print(y.round(3))
    [[-1.  1.]]
    """
    return replaced((nn, normalization, attention), _DROP_INS)


def _standardized(module: Any, layout_of: Callable[..., Layout], x: Array, mask: Array | None) -> Array:
    norm_layout = layout_of(module, x, module.is_initializing())
    return standardized(module, x, norm_layout, _affine(module, x, norm_layout), mask)


def _affine(module: Any, x: Array, norm_layout: Layout) -> tuple[Any, Any]:
    shape = [x.shape[a] for a in norm_layout.feature_axes]
    init = initial_scale(module.scale_init, module.scale_offset, type(module).__name__)
    scale = module.param("scale", init, shape, module.param_dtype) if module.use_scale else None
    use_bias = getattr(module, "use_bias", False)  # RMSNorm has none
    return scale, module.param("bias", module.bias_init, shape, module.param_dtype) if use_bias else None
