"""What is done to all norms in a model of flax.linen."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flax import linen as nn
from jax import lax

from jaxnorm._flax.linen_calls import is_norm_call, stats_step, with_attributes
from jaxnorm._flax.linen_state import as_frozen, has_spec
from jaxnorm._flax.selection import Select, is_selected, nothing_selected
from jaxnorm._specs.frozen import FrozenNorm, freeze
from jaxnorm._state.recalibrate import recalibrate as recalibrate_by_steps


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
    step = stats_step(model, kwargs, "recalibrate")
    before = variables.get("batch_stats", {})
    state = recalibrate_by_steps(step, nn.meta.unbox(before), ((fixed, batch) for batch in batches))
    return {**variables, "batch_stats": nn.meta.replace_boxed(before, state)}


@contextmanager
def frozen(select: Select = None, *, trained: bool = False) -> Iterator[None]:
    """Norms of a model stay as they are deployed, in what is traced within: for models whose code one can't change.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² running statistics,    ∂y/∂γ = ∂y/∂β = 0 unless `trained`

    Norms of jaxnorm and of Flax are evaluated, whatever they are told, and change no `batch_stats`; `recalibrate`
    leaves them alone. Shapes and dtypes stay. Write it into the function that is compiled, around `model.apply`: around
    a call of one that was compiled before, it would come too late, and so it may for a part under `nn.jit`, which keeps
    what it was traced with. In code of your own, `Norm(jn.freeze(spec))` says it where the norm is.

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
    called, freezes = {}, []

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        # A subclass calls its base within its own call.
        if not is_norm_call(context) or module.is_initializing() or hasattr(module, "_frozen"):
            return call(*args, **kwargs)
        called[module.path] = module
        if not is_selected(select, module.path, module):
            return call(*args, **kwargs)
        freezes.append(module.path)
        return (_by_spec if has_spec(module) else _by_flags)(module, trained, call, args, kwargs)

    with nn.intercept_methods(intercept):
        yield
    if not freezes:
        raise ValueError(
            f"{nothing_selected('frozen', select, called)} A function that was compiled before does not call them "
            f"again: write `with jn.linen.frozen():` inside of it, around model.apply."
        )


def _by_spec(module: Any, trained: bool, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A call of a `Norm` with its spec frozen; one that is frozen stays as its author said."""
    spec = module.spec if isinstance(module.spec, FrozenNorm) else freeze(module.spec, trained=trained)
    with with_attributes(module, spec=spec):
        return call(*args, **kwargs)


def _by_flags(module: Any, trained: bool, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A call of one of Flax's norms, or of a drop-in, that is told to evaluate."""
    attributes: dict[str, Any] = {}
    if not trained:
        param = module.param
        attributes["param"] = lambda *args, **kwargs: lax.stop_gradient(param(*args, **kwargs))
    if isinstance(module, nn.BatchNorm):
        given = inspect.signature(type(module).__call__).bind(module, *args, **kwargs)
        given.arguments["use_running_average"] = True
        args, kwargs = given.args[1:], given.kwargs
        attributes["use_running_average"] = None
    with as_frozen(module), with_attributes(module, **attributes):
        return call(*args, **kwargs)
