"""Norms of a linen model, looked at: beside data, and in a table."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flax import linen as nn
from flax.linen import summary
from jax.tree_util import DictKey, keystr

from jaxnorm._flax.folding import affine_of, spec_of
from jaxnorm._flax.linen_calls import is_norm_call, own_traces, stats_step
from jaxnorm._flax.linen_state import has_spec
from jaxnorm._flax.tables import class_named_by_spec
from jaxnorm._state.inspect import beside_data, moments_of_batches
from jaxnorm._types import Inspection


def inspect(
    model: nn.Module, variables: Mapping[str, Any], batches: Iterable[Any], *, steps: int | None = None, **kwargs
) -> dict[str, Inspection]:
    """Running statistics of a model beside those of data that it is given, for each norm: `jn.inspect`.

    mean_distance = |mean − μ| / σ,    var_ratio = var / σ²,    and what single batches are off by

    Args:
        model, variables, batches, kwargs: as for `recalibrate`. The batches should be of the size that training has.
        steps: how many updates there were; without it nobody knows what is left of the start.

    Returns:
        A `jn.Inspection` of arrays (channels,) for each norm by its place. `jaxnorm.inspection` makes a table and a
        picture of it. Nothing changes.

    Raises:
        ValueError: there are no batches, no norms of jaxnorm, or one that saw no data. TypeError: as `recalibrate`.

    Paper: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm".

    >>> model = jn.linen.Norm(jn.BatchNorm())
    >>> batches = [jnp.array([[1.0], [3.0]]), jnp.array([[3.0], [5.0]])]
    >>> variables = model.init(jax.random.key(0), batches[0], train=False)
    >>> found = jn.linen.inspect(model, variables, batches, steps=30)[""]
    >>> print(found.mean_distance.round(2), found.start_weight.round(2))  # never updated
    [2.12] [1.]
    """
    norms: dict[tuple[str, ...], tuple[Any, bool]] = {}

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if is_norm_call(context):
            given = kwargs.get("scale") is not None or kwargs.get("bias") is not None
            norms[context.module.path] = spec_of(context.module), given
        return call(*args, **kwargs)

    variables = nn.meta.unbox(dict(variables))
    fixed = {name: value for name, value in variables.items() if name != "batch_stats"}
    step = stats_step(model, kwargs, "linen.inspect")
    with own_traces()(), nn.intercept_methods(intercept):
        found = moments_of_batches(step, variables.get("batch_stats", {}), ((fixed, batch) for batch in batches))
    # One that was not seen is in a part that is compiled by itself, and was traced for another.
    places = {keystr(tuple(map(DictKey, path))): path for path in norms}
    inspected = {}
    for key, stats in found.items():
        path = places.get(key)
        norm, given = norms[path] if path is not None else (None, True)
        affine = None if given or path is None else affine_of(norm, _at(fixed.get("params", {}), path))
        inspected[key if path is None else ".".join(path)] = beside_data(*stats, norm, affine, steps)
    return inspected


def tabulate(model: nn.Module, rngs: Any, **kwargs: Any) -> Callable[..., str]:
    """The table of `flax.linen.tabulate`, in which a `Norm` has the name of its spec.

    Norm → BatchNorm,    Norm(jn.freeze(…)) → frozen BatchNorm

    Args:
        model, rngs, kwargs: as for `flax.linen.tabulate`.

    Returns:
        A function of what the model takes, of any shapes and dtypes, that gives the table.

    Raises:
        What Flax raises.

    Paper: none.

    >>> table = jn.linen.tabulate(jn.linen.Norm(jn.RMSNorm(), train=False), jax.random.key(0))
    >>> "RMSNorm" in table(jnp.ones((2, 3)))
    True
    """

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        y, module = call(*args, **kwargs), context.module
        if has_spec(module):
            named = module.clone()
            object.__setattr__(named, "__class__", class_named_by_spec(module))
            # Flax keeps a copy of each module that is called, and writes the name of its class down.
            object.__setattr__(module, "clone", lambda: named)
        return y

    def table(*args: Any, **options: Any) -> str:
        with nn.intercept_methods(intercept):
            return summary.tabulate(model, rngs, **kwargs)(*args, **options)

    return table


def _at(tree: Any, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree.get(name, {})
    return tree
