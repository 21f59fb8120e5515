"""Norms of a linen model beside data."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax import linen as nn

from jaxnorm._flax.folding import spec_of
from jaxnorm._flax.linen_calls import is_norm_call, stats_step
from jaxnorm._state.inspect import beside_data, moments_of_batches
from jaxnorm._types import Affine, Inspection


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
    >>> print(found.mean_distance.round(2), found.start_weight.round(2))
    [2.12] [0.74]
    """
    norms: dict[str, Any] = {}

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if is_norm_call(context):
            norms[".".join(context.module.path)] = spec_of(context.module)
        return call(*args, **kwargs)

    fixed = {name: value for name, value in nn.meta.unbox(dict(variables)).items() if name != "batch_stats"}
    step = stats_step(model, kwargs, "linen.inspect")
    with nn.intercept_methods(intercept):
        found = moments_of_batches(step, variables.get("batch_stats", {}), ((fixed, batch) for batch in batches))
    places = {key: key.removeprefix("['").removesuffix("']").replace("']['", ".") for key in found}
    params = {place: _at(fixed.get("params", {}), place) for place in places.values()}
    return {
        places[key]: beside_data(*stats, norms[places[key]], _affine(params[places[key]]), steps)
        for key, stats in found.items()
    }


def _at(tree: Any, place: str) -> Any:
    for name in place.split(".") if place else ():
        tree = tree.get(name, {})
    return tree


def _affine(variables: Mapping[str, Any]) -> Affine:
    return Affine(variables.get("scale"), variables.get("bias"))
