"""Any spec as a Flax nnx module, and Flax's own norms made accurate: read variables, call the core, write state.

The drop-ins are subclasses that replace `__call__`: arguments mean what they mean in Flax, checkpoints are the same.
`jaxnorm.linen` says where they differ. Besides, evaluation in bfloat16 does not round the running statistics, whatever
`promote_dtype` does, and group norm takes data of any rank.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import ArrayLike, DTypeLike

from jaxnorm import _checks, _flax
from jaxnorm._functional import Axes, Data, Result
from jaxnorm._recalibrate import arguments, came, run, some, told
from jaxnorm._spec import Spec
from jaxnorm._states import emptied, opened, tracks
from jaxnorm._trees import Accumulating, RunningStats, committed, fields, recalibrating, with_given

__all__ = [
    "BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "Norm", "RMSNorm", "accumulate", "commit", "recalibrate",
]  # fmt: skip

_ADDED = ("before", "seen")


def __dir__():
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
    and dtype of `x`. A scale or bias in the call is for specs with `use_scale=False` or `use_bias=False`. ValueError:
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
        self.spec, self.use_running_average, self.features = nnx.data(spec), use_running_average, _shape(features)
        params, state = spec.init(features, param_dtype)
        self._kinds = type(params), type(state)
        inits = {"scale": scale_init, "bias": bias_init}
        for kind, tree in ((nnx.Param, params), (nnx.BatchStat, state)):
            for name, value in fields(tree).items():
                if value is not None and name in inits:
                    init = inits[name] or (lambda key, *_, value=value: value)
                    key = None if rngs is None and inits[name] is None else _checks.key(rngs, who)
                    value = init(key, value.shape, value.dtype)  # pyright: ignore[reportArgumentType]
                setattr(self, name, nnx.data(None) if value is None else kind(value))

    def __call__(
        self, x: Data, use_running_average: bool | None = None, *, train: bool | None = None,
        where: ArrayLike | None = None, scale: ArrayLike | None = None, bias: ArrayLike | None = None,
    ) -> Result:  # fmt: skip
        who = "nnx.Norm"
        _checks.given_twice(self.spec, who, scale=scale, bias=bias)
        _checks.features(self.spec, self.features, jnp.shape(x), who)
        params, state = with_given(_tree(self, self._kinds[0]), scale=scale, bias=bias), _state(self)
        if recalibrating(state):
            _checks.idle_flag(train, who, "train")
            _checks.idle_flag(use_running_average, who, "use_running_average")
            train = True
        else:
            train = _checks.mode(train, use_running_average, who)
            train = not _frozen(self, None if train is None else not train)
        y, new = self.spec.apply(params, state, x, train=train, where=where)
        if new is not state:
            _store(self, new)
        return y

    def set_view(self, use_running_average: bool | None = None):
        """For `nnx.view`.

        Args:
          use_running_average: evaluation.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


class BatchNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm`, accurate. Paper: Ioffe & Szegedy 2015.

    y = γ (x − μ) / √(σ² + ε) + β,    mean ← m · mean + (1 − m) · μ,    var ← m · var + (1 − m) · σ²
    y has the shape of `x` and Flax's dtype. Raises ValueError or TypeError where an argument does not fit `x`.

    >>> norm = jn.nnx.BatchNorm(2, momentum=0.9, rngs=nnx.Rngs(0))
    >>> y = norm(jnp.array([[1.0, 10.0], [3.0, 30.0]]))
    >>> print(norm.mean[...].round(3))
    [0.2 2. ]
    """

    def __call__(self, x, use_running_average=None, *, mask=None):
        state = _state(self)
        if recalibrating(state):
            _checks.idle_flag(use_running_average, "BatchNorm", "use_running_average")
        frozen = not recalibrating(state) and _frozen(self, use_running_average)
        values = _read(self, ("mean", "var", "scale", "bias"))
        # What was averaged over many batches is not rounded.
        x, _, _, *affine = self.promote_dtype((x, *values), dtype=self.dtype)
        over, features = _flax.batch_norm(self, x, frozen)
        y, state = _flax.tracked(self, x, over, features, affine, mask, state, train=not frozen)
        if not frozen:
            _store(self, state)
        return y


class LayerNorm(nnx.LayerNorm):
    """`flax.nnx.LayerNorm`, accurate. Paper: Ba, Kiros & Hinton 2016.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over `reduction_axes`, γ and β along `feature_axes`
    y has the shape of `x` and Flax's dtype. Raises ValueError or TypeError where an argument does not fit `x`.

    >>> print(jn.nnx.LayerNorm(2, rngs=nnx.Rngs(0))(jnp.array([[1e4 + 1, 1e4 + 3]])).round(3))
    [[-1.  1.]]
    """

    def __call__(self, x, *, mask=None):
        return _standardized(self, _flax.layer_norm, x, mask)


class RMSNorm(nnx.RMSNorm):
    """`flax.nnx.RMSNorm`, accurate. Paper: Zhang & Sennrich 2019.

    y = γ x / √(⟨|x|²⟩ + ε),    mean over `reduction_axes`, γ along `feature_axes`
    y has the shape of `x` and Flax's dtype. Raises ValueError or TypeError where an argument does not fit `x`.

    >>> print(jn.nnx.RMSNorm(2, rngs=nnx.Rngs(0))(jnp.array([3.0, -3.0])).round(3))
    [ 1. -1.]
    """

    def __call__(self, x, mask=None):
        return _standardized(self, _flax.rms_norm, x, mask)


class GroupNorm(nnx.GroupNorm):
    """`flax.nnx.GroupNorm`, accurate. Paper: Wu & He 2018.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over `reduction_axes`, in blocks of channels
    y has the shape of `x` and Flax's dtype. Raises ValueError or TypeError where an argument does not fit `x`.

    >>> print(jn.nnx.GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))(jnp.array([[1.0, 3.0, 10.0, 30.0]])).round(3))
    [[-1.  1. -1.  1.]]
    """

    def __call__(self, x, *, mask=None):
        return _standardized(self, _flax.group_norm, x, mask)


class InstanceNorm(nnx.InstanceNorm):
    """`flax.nnx.InstanceNorm`, accurate. Paper: Ulyanov, Vedaldi & Lempitsky 2016.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over all axes but the first and `feature_axes`
    y has the shape of `x` and Flax's dtype. Raises ValueError or TypeError where an argument does not fit `x`.

    >>> print(jn.nnx.InstanceNorm(1, rngs=nnx.Rngs(0))(jnp.array([[[1.0], [3.0]]])).squeeze().round(3))
    [-1.  1.]
    """

    def __call__(self, x, *, mask=None):
        return _standardized(self, _flax.instance_norm, x, mask)


def accumulate(model: nnx.Module, start: ArrayLike = True) -> None:
    """Running statistics of a model to which the batches from here on are parts of one, in place: `jn.accumulate`.

    mean ← m · mean + (1 − m) · μ,    var ← m · var + (1 − m) · σ²,    with μ and σ² of all parts, merged

    Args:
        model: a module with norms of jaxnorm, `Norm` or `BatchNorm`, in it. They get variables `before` and `seen`.
        start: whether a whole batch begins here; it may be traced.

    Shapes and dtypes stay what they are. Raises nothing of its own.

    Paper: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    >>> norm = jn.nnx.BatchNorm(1, momentum=0.9, rngs=nnx.Rngs(0))
    >>> jn.nnx.accumulate(norm)
    >>> ys = [norm(part) for part in (jnp.array([[1.0], [3.0]]), jnp.array([[8.0]]))]
    >>> jn.nnx.commit(norm)
    >>> print(norm.mean[...].round(3))  # as of one batch of three
    [0.4]
    """
    for norm in _norms(model).values():
        _store(norm, opened(_state(norm), start))


def commit(model: nnx.Module) -> None:
    """Running statistics of a model after the parts that `accumulate` took as one, in place: `jn.commit`.

    accumulate, then commit = nothing done

    Args:
        model: as for `accumulate`. Shapes and dtypes stay what they are. Raises nothing of its own.

    >>> norm = jn.nnx.Norm(jn.BatchNorm(), 1)
    >>> jn.nnx.accumulate(norm)
    >>> jn.nnx.commit(norm)
    """
    for norm in _norms(model).values():
        _store(norm, committed(_state(norm)))


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
        kwargs: further ones for the model. A flag `train`, `training`, `is_training` or `deterministic` of it is set to
            evaluation.

    Shapes and dtypes stay what they are, and so does all else in the model; all of it, where something is raised.

    Raises:
        ValueError: there are no batches, no batch norms of jaxnorm, or one that saw no data, or one value per statistic
            in each. TypeError: a batch has more arguments than the model, one of them lands in a flag, or the model
            requires more.

    Paper: Ioffe & Szegedy 2015, "Batch Normalization", algorithm 2.

    >>> norm = jn.nnx.BatchNorm(1, rngs=nnx.Rngs(0))
    >>> jn.nnx.recalibrate(norm, [jnp.array([[1.0], [3.0]]), jnp.array([[8.0]])])
    >>> print(norm.mean[...])
    [4.]
    """
    # A copy: the model stays as it is until all data have come.
    copy = nnx.clone(nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False))
    seen = _norms(copy)
    for norm in seen.values():
        _store(norm, emptied(_state(norm)))
    some(seen)
    graph, state, rest = nnx.split(copy, nnx.BatchStat, ...)

    def step(state, inputs):
        rest, batch = inputs
        args, more = arguments(batch)
        net = nnx.merge(graph, state, rest)
        net(*args, **told(net.__call__, args, {**kwargs, **more}))
        return nnx.state(net, nnx.BatchStat)

    state, calls = run(step, state, ((rest, batch) for batch in batches))
    nnx.update(copy, state)
    found = {path: _state(norm) for path, norm in seen.items()}
    came(found, calls)
    for path, norm in _norms(model).items():
        _store(norm, committed(found[path]))


def _shape(features):
    """Sizes as nnx keeps them: a list would be a node of its own."""
    return tuple(features) if isinstance(features, Sequence) else features


def _norms(model):
    """The modules with running statistics in a model, by their path."""
    modules = ((".".join(map(str, path)), m) for path, m in nnx.iter_modules(model))
    return {path: m for path, m in modules if isinstance(m, Norm | BatchNorm) and tracks(_state(m))}


def _state(norm):
    """What a norm keeps: its running statistics, with what `accumulate` has added to them, or None."""
    state = _tree(norm, RunningStats if isinstance(norm, BatchNorm) else norm._kinds[1])
    if not hasattr(norm, "seen"):
        return state
    return Accumulating(*state, *(getattr(norm, name).get_value() if hasattr(norm, name) else None for name in _ADDED))


def _tree(module, kind) -> Any:
    return None if kind is type(None) else kind(*_read(module, kind._fields))


def _store(norm, state):
    """Sets what a norm keeps; adds and removes what `accumulate` and `commit` do."""
    values = {name: value for name, value in fields(state).items() if value is not None}
    for name in _ADDED:
        if name not in values and hasattr(norm, name):
            delattr(norm, name)
    for name, value in values.items():
        if hasattr(norm, name):
            _flax.write(getattr(norm, name), value)
        else:
            setattr(norm, name, nnx.BatchStat(value))


def _standardized(module, layout, x, mask):
    values = _read(module, ("scale", "bias") if hasattr(module, "bias") else ("scale",))
    x, *affine = module.promote_dtype((x, *values), dtype=module.dtype)
    over, features = layout(module, x, False)
    return _flax.standardized(module, x, over, features, (*affine, None)[:2], mask)


def _frozen(module, use_running_average):
    frozen = module.use_running_average if use_running_average is None else use_running_average
    return _checks.flag(frozen, type(module).__name__, "use_running_average")


def _read(module, names) -> list[Any]:
    return [None if v is None else v[...] for v in (getattr(module, name, None) for name in names)]
