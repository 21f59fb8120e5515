"""Calls of linen models: told to evaluate, and those of their norms intercepted."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any

import jax
from flax import linen as nn
from flax.core.scope import union_filters

from jaxnorm._flax.evaluate import eval_kwargs, model_arguments
from jaxnorm._flax.linen_state import has_spec

_traced_for = jax.make_user_context(0)
_numbers = count(1)
_FLAX = nn.BatchNorm, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm
_OF_APPLY = ("rngs", "method", "capture_intermediates", "mutable")
"""What goes to `model.apply`, and not to the model."""


def eval_arguments(
    model: nn.Module, batch: Any, kwargs: Mapping[str, Any], who: str
) -> tuple[tuple[Any, ...], dict[str, Any], dict[str, Any]]:
    """Arguments by position and by name that evaluate a model on a batch; and those of `model.apply`."""
    args, given = model_arguments(batch, kwargs)
    of_apply = {name: given.pop(name) for name in _OF_APPLY if name in given}
    method = of_apply.get("method") or "__call__"
    call = getattr(model, method) if isinstance(method, str) else method.__get__(model)
    return args, eval_kwargs(call, args, given, who), of_apply


def stats_step(model: nn.Module, kwargs: dict[str, Any], who: str) -> Callable[[Any, Any], Any]:
    """The `batch_stats` after a batch in evaluation, as a function of those before, and of variables and batch.

    Variables are arguments: what a compiled function closes over becomes constants of its program.
    """
    # A filter of collections: these, and all that the model writes into. What it writes elsewhere is thrown away.
    mutable = union_filters(kwargs.pop("mutable", False), "batch_stats")

    def step(state: Any, inputs: Any) -> Any:
        fixed, batch = inputs
        args, options, of_apply = eval_arguments(model, batch, kwargs, who)
        of_apply["mutable"] = mutable
        _, updates = model.apply({**fixed, "batch_stats": state}, *args, **options, **of_apply)
        return updates["batch_stats"]

    return step


def is_norm_call(context: Any) -> bool:
    """Whether what `nn.intercept_methods` tells of is the call of a norm, one of jaxnorm or of Flax."""
    module = context.module
    return context.method_name == "__call__" and (isinstance(module, _FLAX) or has_spec(module))


def own_traces() -> Callable[[], AbstractContextManager[None]]:
    """A context in which what is traced is found again in the same one alone.

    Else a part under `nn.jit` would bring along what was intercepted when it was traced before.
    """
    number = next(_numbers)
    return lambda: _traced_for(number)


@contextmanager
def with_attributes(module: Any, **attributes: Any) -> Iterator[None]:
    """A bound module with other attributes for a while: they are its own, and go with the call that made it."""
    had = {name: vars(module)[name] for name in attributes if name in vars(module)}
    try:
        for name, value in attributes.items():
            object.__setattr__(module, name, value)
        yield
    finally:
        for name in attributes:
            object.__delattr__(module, name)
        for name, value in had.items():
            object.__setattr__(module, name, value)
