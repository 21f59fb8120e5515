"""What is done to all norms in a model of flax.linen."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from flax import linen as nn
from flax.core.scope import union_filters
from jax import lax

from jaxnorm._flax.evaluate import eval_kwargs, model_arguments
from jaxnorm._flax.selection import Select, is_selected, nothing_selected
from jaxnorm._specs.base import Spec
from jaxnorm._specs.frozen import freeze
from jaxnorm._state.recalibrate import recalibrate as recalibrate_by_steps
from jaxnorm._types import ADDED

_FLAX = nn.BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm
_OF_APPLY = ("rngs", "method", "capture_intermediates")
"""What `recalibrate` passes to `model.apply`, and not to the model."""


def recalibrate(model: nn.Module, variables: Mapping[str, Any], batches: Iterable[Any], **kwargs) -> dict[str, Any]:
    """Population statistics in the place of running averages, for all batch norms of a model.

    mean = μ,    var = σ² n / (n − ddof),    of all data that each norm sees, merged over the batches

    The model runs in evaluation, without dropout, unless it is told otherwise: its norms use the statistics of each
    batch nevertheless. `jn.recalibrate` is the same for functions; use that to shard batches over named axes.

    Args:
        model: a module with norms of jaxnorm, `Norm` or `BatchNorm`, in it.
        variables: its variables, with `batch_stats`; trained, or with averaged weights. Frozen norms stay as they are.
        batches: any iterable of what the model takes, without labels: an array, a tuple of arguments by position, or a
            mapping of keyword arguments, as `{"x": x, "mask": mask}`. Batches may be unequal, and arrays on several
            devices. One alone is `[x]`: of an array, each entry along its first axis would be a batch.
        kwargs: further ones for `model.apply`, as `method` or `mutable`, or for the model. A flag `train`, `training`,
            `is_training` or `deterministic` of it, if it is required or a bool by default, is set to evaluation where
            it is not given. Other variables stay as they are; what else is in `batch_stats` is written as in training.

    Returns:
        The variables, with new `batch_stats` of the same shapes. Channels without data keep theirs.

    Raises:
        ValueError: there are no batches; a norm saw no data, as one of flax.linen never does; or each batch had one
            value per statistic. TypeError: a batch has more arguments than the model, one of them lands in a flag, or
            the model requires more.

    Paper: Ioffe & Szegedy 2015, "Batch Normalization", algorithm 2.

    >>> model = jn.linen.Norm(jn.BatchNorm())
    >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[8.0]])]
    >>> variables = model.init(jax.random.key(0), batches[0], train=False)
    >>> print(jn.linen.recalibrate(model, variables, batches)["batch_stats"]["mean"])
    [4.]
    """
    fixed = {name: value for name, value in variables.items() if name != "batch_stats"}
    method = kwargs.get("method") or "__call__"
    call = getattr(model, method) if isinstance(method, str) else partial(method, model)
    # A filter of collections: these, and all that the model writes into. What it writes elsewhere is thrown away.
    mutable = union_filters(kwargs.pop("mutable", False), "batch_stats")

    def step(state: Any, inputs: Any) -> Any:
        fixed, batch = inputs
        args, given = model_arguments(batch, kwargs)
        of_apply = {name: given.pop(name) for name in _OF_APPLY if name in given}
        options = eval_kwargs(call, args, given) | of_apply
        _, updates = model.apply({**fixed, "batch_stats": state}, *args, **options, mutable=mutable)
        return updates["batch_stats"]

    # Fixed variables are arguments of the step: what a compiled function closes over becomes constants of its program.
    state = recalibrate_by_steps(step, variables.get("batch_stats", {}), ((fixed, batch) for batch in batches))
    return {**variables, "batch_stats": state}


@contextmanager
def frozen(select: Select = None, *, trained: bool = False) -> Iterator[None]:
    """Norms of a model stay as they are deployed, in what is traced within: for models whose code one can't change.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² running statistics,    ∂y/∂γ = ∂y/∂β = 0 unless `trained`

    Norms of jaxnorm and of Flax are evaluated, whatever they are told, and change no `batch_stats`; `recalibrate`
    leaves them alone. Shapes and dtypes stay. Write it into the function that is compiled, around `model.apply`: around
    a call of one that was compiled before, it would come too late. In code of your own, `Norm(jn.freeze(spec))` says it
    where the norm is.

    Args:
        select: which of them: None for all with running statistics; a class of modules or specs, or several; the place
            of a part of the model, as "encoder.layers_0"; or a function of the place, a tuple, and the bound module.
        trained: whether gradients reach scale and bias. Without, an optimizer may still decay them: mask them out.

    Raises:
        ValueError: no such norm was called within.

    Paper: Ren et al. 2015, "Faster R-CNN", as He et al. 2016, "Deep Residual Learning for Image Recognition", train it.

    >>> model, x = nn.BatchNorm(use_running_average=False), jnp.array([[1.0], [2.0]])
    >>> variables = model.init(jax.random.key(0), x)
    >>> with jn.linen.frozen():
    ...     print(model.apply(variables, x).round(3).T)
    [[1. 2.]]
    """
    called, inside, freezes = {}, [], []

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        norm = context.method_name == "__call__" and (isinstance(module, _FLAX) or _has_spec(module))
        if inside or not norm or module.is_initializing():
            return call(*args, **kwargs)
        called[module.path] = module
        if not is_selected(select, module.path, module):
            return call(*args, **kwargs)
        freezes.append(module.path)
        inside.append(module)
        try:
            return _evaluated(module, trained, args, kwargs)
        finally:
            inside.pop()

    with nn.intercept_methods(intercept):
        yield
    if not freezes:
        raise ValueError(
            f"{nothing_selected('frozen', select, called)} A function that was compiled before does not call them "
            f"again: write `with jn.linen.frozen():` inside of it, around model.apply."
        )


def _has_spec(module: Any) -> bool:
    return isinstance(getattr(module, "spec", None), Spec)


def _evaluated(module: Any, trained: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of a norm that is told to evaluate, on its variables, which stay."""
    stats = dict(module.variables.get("batch_stats", {}))
    if "seen" in stats and module.is_mutable_collection("batch_stats"):
        # As a frozen spec says that data are not to replace its statistics.
        module.put_variable("batch_stats", "seen", None)
    params = module.variables.get("params", {})
    variables = {
        "params": params if trained else lax.stop_gradient(params),
        "batch_stats": {name: value for name, value in stats.items() if name not in ADDED},
    }
    if _has_spec(module):
        copy = module.clone(parent=None, name=None, spec=freeze(module.spec, trained=trained))
        return copy.apply(variables, *args, **kwargs)
    if not isinstance(module, nn.BatchNorm):
        return module.clone(parent=None, name=None).apply(variables, *args, **kwargs)
    given = inspect.signature(module.__call__).bind(*args, **kwargs)
    given.arguments.pop("use_running_average", None)
    copy = module.clone(parent=None, name=None, use_running_average=True)
    return copy.apply(variables, *given.args, **given.kwargs)
