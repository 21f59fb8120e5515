"""Any spec as a Flax nnx module, and Flax's own norms made accurate: read variables, call the core, write state.

The drop-ins are subclasses of Flax's classes that replace `__call__`. Every argument means what it means there, and
variables and checkpoints are the same; `jaxnorm.linen` says where they differ. Here moreover evaluation does not round
the running statistics to bfloat16, whatever `promote_dtype` does, and group norm takes data of any rank.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, DTypeLike, Inexact

from jaxnorm import _checks, _flax
from jaxnorm._functional import Axes
from jaxnorm._specs import Spec


class Norm(nnx.Module):
    """A norm as a layer: its parameters as `nnx.Param`, its state as `nnx.BatchStat`.

    y, state = spec.apply(params, state, x, train=not use_running_average, where=where)

    The fields of the parameters and of the state are attributes: `scale`, `bias`, and for `jn.BatchNorm` also `mean`,
    `var` and `count`. State is written in training only. The spec is data: leaves that are arrays are part of the
    module's state, and can be mapped over; numbers are static.

    Args:
        spec: any `jn.Spec` whose parameters and state are NamedTuples or None.
        features: what `spec.init` wants: the number of channels, or the shape of the normalized axes.
        rngs: for the initializers.
        scale_init, bias_init: in place of 1 and 0.
        param_dtype: of the parameters.
        use_running_average: evaluation: here, in the call, or by `eval()` and `train()`.

    `__call__(x, use_running_average=None, *, where=None)` returns y, of the shape and dtype of `x`.

    Raises:
        ValueError: an initializer lacks `rngs`; `use_running_average` is given nowhere. What the spec raises.

    Paper: that of the spec.

    >>> norm = jn.nnx.Norm(jn.BatchNorm(momentum=0.9), 2)
    >>> y = norm(jnp.array([[1.0, 10.0], [3.0, 30.0]]))
    >>> print(norm.mean[...].round(3), norm.count[...])
    [0.2 2. ] 1
    """

    def __init__(
        self,
        spec: Spec,
        features: Axes,
        rngs: nnx.Rngs | None = None,
        *,
        scale_init: nnx.Initializer | None = None,
        bias_init: nnx.Initializer | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_running_average: bool | None = False,
    ):
        self.spec, self.use_running_average = nnx.data(spec), use_running_average
        params, state = spec.init(features, param_dtype)
        self._params, self._state = type(params), type(state)
        inits = {"scale": scale_init, "bias": bias_init}
        if rngs is None:
            if any(inits.values()):
                raise ValueError("nnx.Norm: initializers need a random key: Norm(spec, features, rngs=nnx.Rngs(0)).")
            rngs = nnx.Rngs()
        for kind, fields in ((nnx.Param, params), (nnx.BatchStat, state)):
            for name, value in _fields(fields).items():
                if value is not None and inits.get(name):
                    value = inits[name](rngs.params(), value.shape, value.dtype)
                setattr(self, name, nnx.data(None) if value is None else kind(value))

    def __call__(
        self, x: Inexact[Array, "..."], use_running_average: bool | None = None, *, where: ArrayLike | None = None
    ) -> Inexact[Array, "..."]:
        """Normalizes `x`; see the class."""
        train = not _frozen(self, use_running_average)
        params, state = _tree(self, self._params), _tree(self, self._state)
        y, state = self.spec.apply(params, state, x, train=train, where=where)
        if train:
            for name, value in _fields(state).items():
                getattr(self, name)[...] = value
        return y

    def set_view(self, use_running_average: bool | None = None):
        """For `nnx.view`.

        Args:
            use_running_average: evaluation.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


class BatchNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm`, accurate. `axis_name` may be several names.

    y = γ (x − μ) / √(σ² + ε) + β,    mean ← m · mean + (1 − m) · μ,    var ← m · var + (1 − m) · σ²

    `x` has any shape; y has it, too, and Flax's dtype. Raises ValueError or TypeError if an argument does not fit `x`.
    Paper: Ioffe & Szegedy 2015, "Batch Normalization".

    >>> norm = jn.nnx.BatchNorm(2, momentum=0.9, rngs=nnx.Rngs(0))
    >>> y = norm(jnp.array([[1.0, 10.0], [3.0, 30.0]]))
    >>> print(norm.mean[...].round(3))
    [0.2 2. ]
    """

    def __call__(self, x, use_running_average=None, *, mask=None):
        """Normalizes `x`; `mask` broadcasts to it, and says what counts."""
        frozen = _frozen(self, use_running_average)
        mean, var = self.mean[...], self.var[...]
        # What is averaged over many batches is not rounded.
        x, _, _, *affine = self.promote_dtype((x, mean, var, *_read(self, ("scale", "bias"))), dtype=self.dtype)
        x = jnp.asarray(x)
        over, features = _flax.batch_norm(self, x, alone=frozen)
        y, mean, var = _flax.tracked(self, x, over, features, affine, mask, mean, var, train=not frozen)
        if not frozen:
            self.mean[...], self.var[...] = mean, var
        return y


class LayerNorm(nnx.LayerNorm):
    """`flax.nnx.LayerNorm`, accurate.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over `reduction_axes`; γ and β along `feature_axes`

    `x` has any shape; y has it, too, and Flax's dtype. Raises ValueError or TypeError if an argument does not fit `x`.
    Paper: Ba, Kiros & Hinton 2016, "Layer Normalization".

    >>> print(jn.nnx.LayerNorm(2, rngs=nnx.Rngs(0))(jnp.array([[1e4 + 1, 1e4 + 3]])).round(3))
    [[-1.  1.]]
    """

    def __call__(self, x, *, mask=None):
        """Normalizes `x`; `mask` broadcasts to it, and says what counts."""
        return _standardized(self, _flax.layer_norm, x, mask)


class RMSNorm(nnx.RMSNorm):
    """`flax.nnx.RMSNorm`, accurate.

    y = γ x / √(⟨|x|²⟩ + ε),    mean over `reduction_axes`; γ along `feature_axes`

    `x` has any shape; y has it, too, and Flax's dtype. Raises ValueError or TypeError if an argument does not fit `x`.
    Paper: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".

    >>> print(jn.nnx.RMSNorm(2, rngs=nnx.Rngs(0))(jnp.array([3.0, -3.0])).round(3))
    [ 1. -1.]
    """

    def __call__(self, x, mask=None):
        """Normalizes `x`; `mask` broadcasts to it, and says what counts."""
        return _standardized(self, _flax.rms_norm, x, mask)


class GroupNorm(nnx.GroupNorm):
    """`flax.nnx.GroupNorm`, accurate.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over `reduction_axes`, in blocks of channels

    `x` has any shape; y has it, too, and Flax's dtype. Raises ValueError or TypeError if an argument does not fit `x`.
    Paper: Wu & He 2018, "Group Normalization".

    >>> norm = jn.nnx.GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
    >>> print(norm(jnp.array([[1.0, 3.0, 10.0, 30.0]])).round(3))
    [[-1.  1. -1.  1.]]
    """

    def __call__(self, x, *, mask=None):
        """Normalizes `x`; `mask` broadcasts to it, and says what counts."""
        return _standardized(self, _flax.group_norm, x, mask)


class InstanceNorm(nnx.InstanceNorm):
    """`flax.nnx.InstanceNorm`, accurate.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over all axes but the first and `feature_axes`

    `x` has any shape; y has it, too, and Flax's dtype. Raises ValueError or TypeError if an argument does not fit `x`.
    Paper: Ulyanov, Vedaldi & Lempitsky 2016, "Instance Normalization".

    >>> print(jn.nnx.InstanceNorm(1, rngs=nnx.Rngs(0))(jnp.array([[[1.0], [3.0]]])).squeeze().round(3))
    [-1.  1.]
    """

    def __call__(self, x, *, mask=None):
        """Normalizes `x`; `mask` broadcasts to it, and says what counts."""
        return _standardized(self, _flax.instance_norm, x, mask)


def _standardized(module, layout, x, mask):
    values = _read(module, ("scale", "bias") if hasattr(module, "bias") else ("scale",))
    x, *affine = module.promote_dtype((x, *values), dtype=module.dtype)
    x, affine = jnp.asarray(x), (*affine, None)[:2]
    over, features = layout(module, x, alone=False)
    return _flax.standardized(module, x, over, features, affine, mask)


def _frozen(module, use_running_average):
    frozen = module.use_running_average if use_running_average is None else use_running_average
    if frozen is None:
        raise ValueError(
            f"{type(module).__name__}: use_running_average is given nowhere. Give it to the constructor or to the "
            f"call, or choose with train() and eval()."
        )
    return _checks.flag(frozen, type(module).__name__, "use_running_average")


def _read(module, names):
    variables = (getattr(module, name) for name in names)
    return [None if variable is None else variable[...] for variable in variables]


def _tree(module, kind):
    return None if kind is type(None) else kind(*_read(module, kind._fields))


def _fields(tree):
    return {} if tree is None else tree._asdict()
