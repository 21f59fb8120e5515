"""Norms of a linen model become parts of its layers, without a change to its code."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.core.scope import subtract_filters, union_filters
from flax.errors import ModifyScopeVariableError

from jaxnorm._flax.folding import first_argument, is_layer, marked_call, program_of
from jaxnorm._flax.linen_calls import eval_arguments, is_norm_call, own_traces, with_attributes
from jaxnorm._state.tree import has_stats
from jaxnorm._trained.model_folding import FoldReport, Part, fold_parts


def fold(
    model: nn.Module, variables: Mapping[str, Any], batch: Any, **kwargs
) -> tuple[Callable[..., Any], dict[str, Any], FoldReport]:
    """A model for evaluation in which norms by running statistics are parts of the layers beside them.

    apply, variables, report = fold(model, variables, x)        apply(variables, x) = model.apply(variables, x)

    A norm becomes a part of the dense layer or convolution straight before it, or else of the one straight after it, if
    that does not pad; the code of the model stays as it is. Norms of Flax do as well as those of jaxnorm.

    Args:
        model: any module.
        variables: its variables.
        batch: what the model takes, as one of `recalibrate`. Shapes and dtypes count; `jax.ShapeDtypeStruct` says them.
        kwargs: further ones for `model.apply`, or for the model. A flag `train`, `training`, `is_training` or
            `deterministic` of it, if it is required or a bool by default, is set to evaluation where it is not given.

    Returns:
        A function as `model.apply`, the variables for it, and a report: `report.folded` has the layers by the places of
        norms, `report.kept` says why others stay. Folded norms have no variables any more. Kernels keep their dtypes;
        a layer that had no bias has one. Shapes of the data may change afterwards; flags that lead elsewhere in the
        model may not, and of intermediates those between a layer and its norm are not there any more.

    Raises:
        ValueError: a norm is told to train, or `apply` another `method` than was folded. TypeError: the model requires
        more than it is given.

    Paper: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", section 3.2.

    >>> model, x = nn.Sequential([nn.Dense(3), jn.linen.Norm(jn.BatchNorm(), train=False), nn.relu]), jnp.ones((2, 4))
    >>> variables = model.init(jax.random.key(0), x)
    >>> apply, folded, report = jn.linen.fold(model, variables, x)
    >>> print(report, list(folded["params"]), abs(apply(folded, x) - model.apply(variables, x)).max() < 1e-6)
    layers_1 is in layers_0 ['layers_0'] True
    """
    variables = nn.meta.unbox(dict(variables))
    parts: list[Part] = []
    with own_traces()():
        program, given = _marked(model, variables, batch, kwargs, parts)
    report = fold_parts(parts, program, given)
    for place in _places(variables.get("batch_stats", {})) - report.folded.keys() - report.kept.keys():
        report.kept[place] = "It is in a part that is compiled by itself, and was not traced anew; or it is not called."
    layers = {part.place: part.arrays for part in parts if part.place in report.folded.values()}
    dtypes = {part.place: part.dtype for part in parts}
    return _applying(model, report, dtypes, kwargs.get("method")), _rebuilt(variables, report.folded, layers), report


def _marked(model: nn.Module, variables: Any, batch: Any, kwargs: Mapping[str, Any], parts: list[Part]) -> Any:
    """The program of a model in evaluation, with marked calls of `parts`; and its arguments."""
    args, options, of_apply = eval_arguments(model, batch, kwargs, "linen.fold")
    # What a model writes down is a result, too. Norms that train would write, and can't.
    written = union_filters(of_apply.get("mutable", False), list(variables))
    of_apply["mutable"] = subtract_filters(written, ["params", "batch_stats"])

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if not (is_norm_call(context) or (context.method_name == "__call__" and is_layer(module))):
            return call(*args, **kwargs)
        arrays, here = _arrays(variables, module)
        return marked_call(parts, module, ".".join(module.path), arrays, here, call, args, kwargs)

    def run(variables: Any, args: Any, options: Any) -> Any:
        with nn.intercept_methods(intercept):
            return model.apply(variables, *args, **options, **of_apply)

    try:
        return program_of(run, variables, args, options)
    except ModifyScopeVariableError as error:
        raise ValueError("linen.fold: a norm is told to train. Tell the model to evaluate, as train=False.") from error


def _arrays(variables: Any, module: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The variables of a module by name, among all of those given, and as they are within."""
    given, here = {}, {}
    for collection in ("params", "batch_stats"):
        tree = variables.get(collection, {})
        for name in module.path:
            tree = tree.get(name, {})
        given |= {name: value for name, value in tree.items() if not isinstance(value, Mapping)}
        here |= {name: module.variables[collection][name] for name in given if name in tree}
    return given, here


def _applying(
    model: nn.Module, report: FoldReport, dtypes: Mapping[str, Any], folded_method: Any
) -> Callable[..., Any]:
    """`model.apply`, without the norms that are folded."""
    layers, traces = set(report.folded.values()), own_traces()

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        module, place = context.module, ".".join(context.module.path)
        if is_norm_call(context) and place in report.folded:
            return first_argument(module, args, kwargs)[0].astype(dtypes[place])
        if place in layers and is_layer(module):
            with with_attributes(module, use_bias=True):
                return call(*args, **kwargs)
        return call(*args, **kwargs)

    def apply(variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        method = kwargs.get("method")
        if (method or "__call__") != (folded_method or "__call__"):
            raise ValueError(
                f"linen.fold: method={method!r}, and the model was folded for method={folded_method!r}: what comes "
                f"after a layer may be another norm there, or none. Fold it for each method."
            )
        with traces(), nn.intercept_methods(intercept):
            return model.apply(variables, *args, **kwargs)

    return apply


def _rebuilt(tree: Any, norms: Mapping[str, str], layers: Mapping[str, Any], path: tuple[str, ...] = ()) -> Any:
    """Variables without those of folded norms, and with the new ones of layers."""
    if not isinstance(tree, Mapping):
        return tree
    kept = {key: value for key, value in tree.items() if ".".join((*path[1:], key)) not in norms}
    below = {key: _rebuilt(value, norms, layers, (*path, key)) for key, value in kept.items()}
    rebuilt = {key: value for key, value in below.items() if not _is_empty(value) or _is_empty(tree[key])}
    return rebuilt | layers.get(".".join(path[1:]), {}) if path[:1] == ("params",) else rebuilt


def _places(tree: Any) -> set[str]:
    """Where there are running statistics."""
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=has_stats)
    return {".".join(str(key.key) for key in path) for path, node in nodes if has_stats(node)}


def _is_empty(tree: Any) -> bool:
    return isinstance(tree, Mapping) and not tree
