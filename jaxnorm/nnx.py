"""Any spec as a Flax nnx module, and Flax's own norms made accurate: read variables, call the core, write state.

The drop-ins are subclasses that replace `__call__`: arguments mean what they mean in Flax, checkpoints are the same.
`jaxnorm.linen` says where they differ. Besides, evaluation in bfloat16 does not round the running statistics, whatever
`promote_dtype` does, and group norm takes data of any rank.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Axes, Data, Result
from jaxnorm._flax import layout, nnx_state
from jaxnorm._flax.call import standardized, tracked
from jaxnorm._flax.evaluate import eval_kwargs, model_arguments
from jaxnorm._flax.layout import Layout
from jaxnorm._flax.nnx_init import WithScaleOffset
from jaxnorm._specs.base import Spec
from jaxnorm._state.recalibrate import recalibrate as recalibrate_by_steps
from jaxnorm._state.running import begin_accumulating
from jaxnorm._types import Affine, Recalibrating, RunningStats, plain, with_given

__all__ = [
    "BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "Norm", "RMSNorm", "accumulate", "commit", "recalibrate",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


class Norm(nnx.Module):
    """A norm as a layer: its parameters as `nnx.Param`, its state as `nnx.BatchStat`.

    Norm(spec, features, rngs=None, *, use_running_average=False, train=None, scale_init, bias_init, param_dtype)

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
        scale_init, bias_init: initializers in place of what `spec.init` gives; `param_dtype`, in place of float32.

    `__call__(x, use_running_average=None, *, train=None, where=None, scale=None, bias=None)` returns y, of the shape
    of `x`. A scale or bias in the call is for specs with `use_scale=False` or `use_bias=False`. ValueError:
    `use_running_average` is given nowhere, or twice; an initializer lacks `rngs`; `x` has other features; what the spec
    raises. Paper: that of the spec.

    >>> norm = jn.nnx.Norm(jn.BatchNorm(momentum=0.9), 2)
    >>> y = norm(jnp.array([[1.0, 10.0], [3.0, 30.0]]))
    >>> print(norm.mean[...].round(3))
    [0.2 2. ]
    """

    def __init__(
        self, spec: Spec, features: Axes, rngs: nnx.Rngs | None = None, *, use_running_average: bool | None = False,
        train: bool | None = None, scale_init: nnx.Initializer | None = None, bias_init: nnx.Initializer | None = None,
        param_dtype: DTypeLike = jnp.float32,
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
        nnx_state.add_variables(self, nnx.Param, params, {"scale": scale_init, "bias": bias_init}, rngs)
        nnx_state.add_variables(self, nnx.BatchStat, state, {}, rngs)

    def __call__(
        self, x: Data, use_running_average: bool | None = None, *, train: bool | None = None,
        where: ArrayLike | None = None, scale: ArrayLike | None = None, bias: ArrayLike | None = None,
    ) -> Result:  # fmt: skip
        who = "nnx.Norm"
        _checks.given_twice(self.spec, who, scale=scale, bias=bias)
        _checks.same_features(self.spec, self.features, jnp.shape(x), who)
        params, state = with_given(nnx_state.read_params(self), scale=scale, bias=bias), nnx_state.read_state(self)
        if isinstance(state, Recalibrating):
            _checks.ignored_flag(train, who, "train")
            _checks.ignored_flag(use_running_average, who, "use_running_average")
            train = True
        else:
            train = _checks.mode(train, use_running_average, who)
            train = not nnx_state.is_frozen(self, None if train is None else not train)
        y, new = self.spec.apply(params, state, x, train=train, where=where)
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
        state, frozen = nnx_state.read_state(self), False
        if isinstance(state, Recalibrating):
            _checks.ignored_flag(use_running_average, "BatchNorm", "use_running_average")
        else:
            frozen = nnx_state.is_frozen(self, use_running_average)
        values = nnx_state.read(self, ("mean", "var", "scale", "bias"))
        # What was averaged over many batches is not rounded.
        x, _, _, *affine = self.promote_dtype((x, *values), dtype=self.dtype)
        y, state = tracked(self, x, layout.batch_norm(self, x, frozen), affine, mask, state, train=not frozen)
        if not frozen:
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


def accumulate(model: nnx.Module, start: ArrayLike = True) -> None:
    """Running statistics of a model to which the batches from here on are parts of one, in place: `jn.accumulate`.

    mean ← m · mean + (1 − m) · μ,    var ← m · var + (1 − m) · σ²,    with μ and σ² of all parts, merged

    Args:
        model: a module with norms of jaxnorm, `Norm` or `BatchNorm`, in it. They get variables `before` and `seen`.
        start: whether a whole batch begins here; it may be traced.

    Shapes and dtypes stay what they are.

    Paper: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    >>> norm = jn.nnx.BatchNorm(1, momentum=0.9, rngs=nnx.Rngs(0))
    >>> jn.nnx.accumulate(norm)
    >>> ys = [norm(part) for part in (jnp.array([[1.0], [3.0]]), jnp.array([[8.0]]))]
    >>> jn.nnx.commit(norm)
    >>> print(norm.mean[...].round(3))  # as of one batch of three
    [0.4]
    """
    nnx_state.store_all(
        model, {path: begin_accumulating(state, start) for path, state in nnx_state.read_all(model).items()}
    )


def commit(model: nnx.Module) -> None:
    """Running statistics of a model after the parts that `accumulate` took as one, in place: `jn.commit`.

    accumulate, then commit = nothing done

    Args:
        model: as for `accumulate`. Shapes and dtypes stay what they are.

    >>> norm = jn.nnx.Norm(jn.BatchNorm(), 1)
    >>> jn.nnx.accumulate(norm)
    >>> jn.nnx.commit(norm)
    """
    nnx_state.store_all(model, {path: plain(state) for path, state in nnx_state.read_all(model).items()})


def recalibrate(model: nnx.Module, batches: Iterable[Any], **kwargs) -> None:
    """Population statistics in the place of running averages, for all batch norms of a model, in place.

    mean = μ,    var = σ² n / (n − ddof),    of all data that each norm sees, merged over the batches

    The model runs in evaluation, without dropout: its norms use the statistics of each batch nevertheless.
    `jn.recalibrate` is the same for functions; use that to shard batches over named axes.

    Args:
        model: a module with norms of jaxnorm, `Norm` or `BatchNorm`, in it; trained, or with averaged weights.
        batches: any iterable of what the model takes, without labels: an array, a tuple of arguments by position, or a
            mapping of keyword arguments, as `{"x": x, "mask": mask}`. Batches may be unequal, and arrays on several
            devices. One alone is `[x]`: of an array, each entry along its first axis would be a batch.
        kwargs: further ones for the model. A flag `train`, `training`, `is_training` or `deterministic` of it, if it is
            required or a bool by default, is set to evaluation where it is not given.

    Shapes and dtypes stay what they are, and so does all else in the model; all of it, where something is raised.

    Raises:
        ValueError: there are no batches or no batch norms of jaxnorm; a norm saw no data, as one of flax.nnx never
            does; or each batch had one value per statistic. TypeError: a batch has more arguments than the model, one
            of them lands in a flag, or the model requires more.

    Paper: Ioffe & Szegedy 2015, "Batch Normalization", algorithm 2.

    >>> norm = jn.nnx.BatchNorm(1, rngs=nnx.Rngs(0))
    >>> jn.nnx.recalibrate(norm, [jnp.array([[1.0], [3.0]]), jnp.array([[8.0]])])
    >>> print(norm.mean[...])
    [4.]
    """
    evaluating = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graph, variables = nnx.split(evaluating)

    def step(stats: Any, inputs: Any) -> Any:
        variables, batch = inputs
        net = nnx.merge(graph, variables)
        nnx_state.store_all(net, stats)
        args, kwargs_ = model_arguments(batch, kwargs)
        net(*args, **eval_kwargs(net.__call__, args, kwargs_))
        return stats | nnx_state.read_all(net)

    if stats := nnx_state.read_all(model):
        # Beside ours, no data come to Flax's own norms: an error says so.
        stats |= nnx_state.stats_of_flax(model)
    # The variables are arguments of the step: what a compiled function closes over becomes constants of its program.
    nnx_state.store_all(model, recalibrate_by_steps(step, stats, ((variables, batch) for batch in batches)))


def _standardized(module: Any, layout_of: Callable[..., Layout], x: Array, mask: Array | None) -> Array:
    values = nnx_state.read(module, ("scale", "bias") if hasattr(module, "bias") else ("scale",))
    x, *affine = module.promote_dtype((x, *values), dtype=module.dtype)
    return standardized(module, x, layout_of(module, x, False), (*affine, None)[:2], mask)
