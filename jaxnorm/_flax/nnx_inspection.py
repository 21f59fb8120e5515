"""Norms of an nnx model, looked at: beside data, and in a table."""

from collections.abc import Iterable
from typing import Any

from flax import nnx
from jax.tree_util import DictKey, keystr

from jaxnorm._flax import nnx_state
from jaxnorm._flax.folding import affine_of, spec_of
from jaxnorm._flax.nnx_calls import stats_step
from jaxnorm._flax.tables import class_named_by_spec
from jaxnorm._state.inspect import beside_data, moments_of_batches
from jaxnorm._types import Inspection


def inspect(model: nnx.Module, batches: Iterable[Any], *, steps: int | None = None, **kwargs) -> dict[str, Inspection]:
    """Running statistics of a model beside those of data that it is given, for each norm: `jn.inspect`.

    mean_distance = |mean − μ| / σ,    var_ratio = var / σ²,    and what single batches are off by

    Args:
        model, batches, kwargs: as for `recalibrate`. The batches should be of the size that training has.
        steps: how many updates there were; without it nobody knows what is left of the start.

    Returns:
        A `jn.Inspection` of arrays (channels,) for each norm by its place. `jaxnorm.inspection` makes a table and a
        picture of it. Nothing changes.

    Raises:
        ValueError: there are no batches, no norms of jaxnorm, or one that saw no data. TypeError: as `recalibrate`.

    Paper: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm".

    >>> norm = jn.nnx.BatchNorm(1, rngs=nnx.Rngs(0))
    >>> found = jn.nnx.inspect(norm, [jnp.array([[1.0], [3.0]]), jnp.array([[3.0], [5.0]])], steps=30)["model"]
    >>> print(found.mean_distance.round(2), found.start_weight.round(2))  # never updated
    [2.12] [1.]
    """
    step, stats, variables = stats_step(model, kwargs, "nnx.inspect")
    places = {keystr((DictKey(place),)): place for place in stats}
    found = moments_of_batches(step, stats, ((variables, batch) for batch in batches))
    norms = {place: module for place, module in nnx_state.modules(model) if nnx_state.is_norm(module)}
    inspected = {}
    for key, stats in found.items():
        place = places[key]
        module = norms[place]
        norm: Any = spec_of(module)
        # A scale or bias may come in the call of a `Norm`, where it learns none.
        learns = not hasattr(module, "spec") or (norm.use_scale and norm.use_bias)
        scale, bias = nnx_state.read(module, ("scale", "bias"))
        affine = affine_of(norm, {"scale": scale, "bias": bias}) if learns else None
        inspected[place] = beside_data(*stats, norm, affine, steps)
    return inspected


def tabulate(model: nnx.Module, *args: Any, **kwargs: Any) -> str:
    """The table of `flax.nnx.tabulate`, in which a `Norm` has the name of its spec.

    Norm → BatchNorm,    Norm(jn.freeze(…)) → frozen BatchNorm

    Args:
        model, args, kwargs: as for `flax.nnx.tabulate`: inputs of any shapes and dtypes, and how the table looks.

    Returns:
        The table. The model stays as it is.

    Raises:
        What Flax raises.

    Paper: none.

    >>> "RMSNorm" in jn.nnx.tabulate(jn.nnx.Norm(jn.RMSNorm(), 3), jnp.ones((2, 3)))
    True
    """
    copy = nnx.clone(model)
    for _, module in nnx_state.modules(copy):
        if nnx_state.is_norm(module) and hasattr(module, "spec"):
            module.__class__ = class_named_by_spec(module)
    return nnx.tabulate(copy, *args, **kwargs)
