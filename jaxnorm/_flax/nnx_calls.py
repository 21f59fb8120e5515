"""Calls of nnx models that are told to evaluate, while their norms look at the data."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from jaxnorm._flax import nnx_state
from jaxnorm._flax.evaluate import eval_kwargs, model_arguments


def stats_step(
    model: nnx.Module, kwargs: Mapping[str, Any], who: str
) -> tuple[Callable[[Any, Any], Any], dict[str, Any], Any]:
    """The running statistics after a batch in evaluation, as a function of those before, and of variables and batch.

    Besides, these statistics and variables. Variables are arguments: what a compiled function closes over becomes
    constants of its program.
    """
    evaluating = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graph, variables = nnx.split(evaluating)

    def step(stats: Any, inputs: Any) -> Any:
        variables, batch = inputs
        net = nnx.merge(graph, variables)
        nnx_state.store_all(net, stats)
        args, kwargs_ = model_arguments(batch, kwargs)
        net(*args, **eval_kwargs(net.__call__, args, kwargs_, who))
        return stats | nnx_state.read_all(net)

    return step, nnx_state.read_all(model), variables
