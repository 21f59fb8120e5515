"""Any spec as a Flax nnx module, and Flax's own norms made accurate: read variables, call the core, write state.

The drop-ins are subclasses that replace `__call__`: arguments mean what they mean in Flax, checkpoints are the same.
`jaxnorm.linen` says where they differ. Besides, evaluation in bfloat16 does not round the running statistics, whatever
`promote_dtype` does, and group norm takes data of any rank.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn import attention, normalization
from jaxtyping import Array, ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Axes, Data, Result
from jaxnorm._flax import layout, nnx_state
from jaxnorm._flax.call import standardized, tracked
from jaxnorm._flax.layout import Layout
from jaxnorm._flax.nnx_folding import fold
from jaxnorm._flax.nnx_init import Frozen, WithScaleOffset
from jaxnorm._flax.nnx_inspection import inspect, tabulate
from jaxnorm._flax.nnx_models import accumulate, commit, freeze, recalibrate, unfreeze
from jaxnorm._flax.nnx_weights import SpectralNorm, StdConv, WeightNorm
from jaxnorm._flax.patching import replaced
from jaxnorm._specs.base import Spec
from jaxnorm._specs.frozen import FrozenNorm
from jaxnorm._specs.frozen import freeze as freeze_spec
from jaxnorm._types import Affine, Recalibrating, RunningStats, with_given

__all__ = [
    "BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "Norm", "RMSNorm", "SpectralNorm", "StdConv", "WeightNorm",
    "accumulate", "commit", "fold", "freeze", "inspect", "patched", "recalibrate", "tabulate", "unfreeze",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


class Norm(nnx.Module):
    """A norm as a layer: its parameters as `nnx.Param`, its state as `nnx.BatchStat`.

    Norm(spec, features, rngs=None, *, use_running_average=False, train=None, scale_init, bias_init, mean_init,
    var_init, param_dtype, scale_metadata, bias_metadata)

    y, state = spec.apply(params, state, x, train=not use_running_average, where=where)

    Fields of parameters and state are attributes: `scale`, `bias`, and `mean`, `var` for `jn.BatchNorm`, as those of
    `nnx.BatchNorm`; `weight_sum` besides where the state has one. State is written where it is new. The spec is data:
    arrays in it are part of the module's state, numbers are static.

    Args:
        spec: any `jn.Spec` whose parameters and state are NamedTuples, dicts or None.
        features: what `spec.init` wants: the number of channels, or the shape of the normalized axes.
        rngs: for initializers. A key is drawn for each of scale and bias, as Flax's norms do, so that what comes after
            starts as it does beside these.
        use_running_average, train: evaluation or training, in either way to say it; here, in the call, or by `train()`
            and `eval()`.
        scale_init, bias_init, mean_init, var_init: initializers in place of what `spec.init` gives; `param_dtype`, in
            place of float32.
        scale_metadata, bias_metadata: for `nnx.Param`, as Flax's norms have them: where their axes lie on a mesh.

    `__call__(x, use_running_average=None, *, train=None, where=None, scale=None, bias=None)` returns y, of the shape
    of `x`. A scale or bias in the call is for specs with `use_scale=False` or `use_bias=False`. ValueError:
    `use_running_average` is given nowhere, or twice; an initializer lacks `rngs`; `x` has other features; what the spec
    raises. Paper: that of the spec.

    >>> norm = jn.nnx.Norm(jn.BatchNorm(momentum=0.9), 2)
    >>> y = norm(jnp.array([[1.0, 10.0], [3.0, 30.0]]))
    >>> print(norm.mean[...].round(3))
    [0.2 2. ]
    """

    frozen: Frozen = None

    def __init__(
        self, spec: Spec, features: Axes, rngs: nnx.Rngs | None = None, *, use_running_average: bool | None = False,
        train: bool | None = None, scale_init: nnx.Initializer | None = None, bias_init: nnx.Initializer | None = None,
        mean_init: nnx.Initializer | None = None, var_init: nnx.Initializer | None = None,
        param_dtype: DTypeLike = jnp.float32, scale_metadata: Mapping[str, Any] = MappingProxyType({}),
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
    ):  # fmt: skip
        who = "nnx.Norm"
        _checks.spec(spec, who)
        if train is not None:
            # False is what it is where nobody says anything.
            use_running_average = not _checks.mode(train, use_running_average or None, who)
        self.spec, self.use_running_average, self.features = (
            nnx.data(spec),
            use_running_average,
            nnx_state.static_sizes(features),
        )
        params, state = spec.init(features, param_dtype)
        self._kinds = nnx_state.kind_of(params), nnx_state.kind_of(state)
        metadata = {"scale": scale_metadata, "bias": bias_metadata}
        nnx_state.add_variables(self, nnx.Param, params, {"scale": scale_init, "bias": bias_init}, rngs, metadata)
        # Without an initializer no key is drawn: running statistics of Flax's norms have none.
        inits = {name: init for name, init in (("mean", mean_init), ("var", var_init)) if init is not None}
        nnx_state.add_variables(self, nnx.BatchStat, state, inits, rngs)

    def __call__(
        self, x: Data, use_running_average: bool | None = None, *, train: bool | None = None,
        where: ArrayLike | None = None, scale: ArrayLike | None = None, bias: ArrayLike | None = None,
    ) -> Result:  # fmt: skip
        who = "nnx.Norm"
        _checks.given_twice(self.spec, who, scale=scale, bias=bias)
        _checks.same_features(self.spec, self.features, np.shape(x), who)
        spec = self.spec
        if self.frozen and not isinstance(spec, FrozenNorm):
            spec = freeze_spec(spec, trained=self.frozen == "statistics")
        params, state = with_given(nnx_state.read_params(self), scale=scale, bias=bias), nnx_state.read_state(self)
        if isinstance(state, Recalibrating):
            _checks.ignored_flag(train, who, "train")
            _checks.ignored_flag(use_running_average, who, "use_running_average")
            train = True
        else:
            train = _checks.mode(train, use_running_average, who)
            train = not nnx_state.evaluates(self, None if train is None else not train)
        y, new = spec.apply(params, state, x, train=train, where=where)
        if new is not state:
            nnx_state.store(self, new)
        return y

    def set_view(self, use_running_average: bool | None = None) -> None:
        """For `nnx.view`.

        Args:
          use_running_average: evaluation.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


class BatchNorm(WithScaleOffset, nnx.BatchNorm):
    """`flax.nnx.BatchNorm`, accurate. Paper: Ioffe & Szegedy 2015.

    y = γ (x − μ) / √(σ² + ε) + β,    mean ← m · mean + (1 − m) · μ,    var ← m · var + (1 − m) · σ²
    y has the shape of `x` and Flax's dtype. Raises ValueError or TypeError where an argument does not fit `x`.

    >>> norm = jn.nnx.BatchNorm(2, momentum=0.9, rngs=nnx.Rngs(0))
    >>> y = norm(jnp.array([[1.0, 10.0], [3.0, 30.0]]))
    >>> print(norm.mean[...].round(3))
    [0.2 2. ]
    """

    _kinds = (Affine, ("scale", "bias")), (RunningStats, ("mean", "var"))

    def __init__(self, *args: Any, ddof: int = 0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.ddof = ddof

    def __call__(self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None) -> Array:
        state, evaluate = nnx_state.read_state(self), self.frozen is not None
        if isinstance(state, Recalibrating):
            _checks.ignored_flag(use_running_average, "BatchNorm", "use_running_average")
        elif not evaluate:
            evaluate = nnx_state.evaluates(self, use_running_average)
        values = *nnx_state.read(self, ("mean", "var")), *nnx_state.read_affine(self)
        # What was averaged over many batches is not rounded.
        x, _, _, *affine = self.promote_dtype((x, *values), dtype=self.dtype)
        y, state = tracked(self, x, layout.batch_norm(self, x, evaluate), affine, mask, state, train=not evaluate)
        if not evaluate:
            nnx_state.store(self, state)
        return y


class LayerNorm(WithScaleOffset, nnx.LayerNorm):
    """`flax.nnx.LayerNorm`, accurate. Paper: Ba, Kiros & Hinton 2016.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over `reduction_axes`, γ and β along `feature_axes`
    y has the shape of `x` and Flax's dtype. Raises ValueError or TypeError where an argument does not fit `x`.

    >>> print(jn.nnx.LayerNorm(2, rngs=nnx.Rngs(0))(jnp.array([[1e4 + 1, 1e4 + 3]])).round(3))
    [[-1.  1.]]
    """

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        return _standardized(self, layout.layer_norm, x, mask)


class RMSNorm(WithScaleOffset, nnx.RMSNorm):
    """`flax.nnx.RMSNorm`, accurate. Paper: Zhang & Sennrich 2019.

    y = γ x / √(⟨|x|²⟩ + ε),    mean over `reduction_axes`, γ along `feature_axes`
    y has the shape of `x` and Flax's dtype. Raises ValueError or TypeError where an argument does not fit `x`.

    >>> print(jn.nnx.RMSNorm(2, rngs=nnx.Rngs(0))(jnp.array([3.0, -3.0])).round(3))
    [ 1. -1.]
    """

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        return _standardized(self, layout.rms_norm, x, mask)


class GroupNorm(WithScaleOffset, nnx.GroupNorm):
    """`flax.nnx.GroupNorm`, accurate. Paper: Wu & He 2018.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over `reduction_axes`, in blocks of channels
    y has the shape of `x` and Flax's dtype. Raises ValueError or TypeError where an argument does not fit `x`.

    >>> print(jn.nnx.GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))(jnp.array([[1.0, 3.0, 10.0, 30.0]])).round(3))
    [[-1.  1. -1.  1.]]
    """

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        return _standardized(self, layout.group_norm, x, mask)


class InstanceNorm(WithScaleOffset, nnx.InstanceNorm):
    """`flax.nnx.InstanceNorm`, accurate. Paper: Ulyanov, Vedaldi & Lempitsky 2016.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over all axes but the first and `feature_axes`
    y has the shape of `x` and Flax's dtype. Raises ValueError or TypeError where an argument does not fit `x`.

    >>> print(jn.nnx.InstanceNorm(1, rngs=nnx.Rngs(0))(jnp.array([[[1.0], [3.0]]])).squeeze().round(3))
    [-1.  1.]
    """

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        return _standardized(self, layout.instance_norm, x, mask)


_DROP_INS = BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm, SpectralNorm, WeightNorm


def patched() -> AbstractContextManager[None]:
    """Flax's names for its norms stand for ours within: for models whose code says `nnx.BatchNorm`.

    flax.nnx.BatchNorm = jaxnorm.nnx.BatchNorm, and so for the others, until the end of the block

    Write it around what makes the model. What was bound before is not reached: a class in the default of a
    function or a field, `from flax.nnx import BatchNorm`; import such code within the block, too. Norms in Flax's
    attention are ours as well. Variables keep their names, shapes and dtypes. It holds for all threads. A compiled
    function keeps what it was traced with, before or within.

    >>> with jn.nnx.patched():
    ...     norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    >>> isinstance(norm, jn.nnx.BatchNorm)
    True
    """
    return replaced((nnx, normalization, attention), _DROP_INS)


def _standardized(module: Any, layout_of: Callable[..., Layout], x: Array, mask: Array | None) -> Array:
    x, *affine = module.promote_dtype((x, *nnx_state.read_affine(module)), dtype=module.dtype)
    return standardized(module, x, layout_of(module, x, False), (*affine, None)[:2], mask)
