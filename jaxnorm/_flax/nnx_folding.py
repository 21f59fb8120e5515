"""Norms of an nnx model become parts of its layers, in a copy of it."""

from collections.abc import Mapping, MutableMapping, MutableSequence
from typing import Any

from flax import nnx
from jaxtyping import Array, DTypeLike

from jaxnorm._flax.evaluate import eval_kwargs, model_arguments
from jaxnorm._flax.folding import is_layer, marked_call, program_of
from jaxnorm._flax.nnx_state import is_norm
from jaxnorm._trained.model_folding import FoldReport, Part, fold_parts


class Folded(nnx.Module):
    """A place where a norm was that is a part of a layer now: it gives what it is given, in a dtype."""

    def __init__(self, dtype: DTypeLike):
        self.dtype = dtype

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Array:
        return x.astype(self.dtype)


def fold(model: nnx.Module, batch: Any, **kwargs) -> tuple[nnx.Module, FoldReport]:
    """A copy of a model, for evaluation, in which norms by running statistics are parts of the layers beside them.

    folded, report = fold(model, x)        folded(x) = model(x), evaluated

    A norm becomes a part of the dense layer or convolution straight before it, or else of the one straight after it, if
    that does not pad. Norms of Flax do as well as those of jaxnorm.

    Args:
        model: any module. It stays as it is.
        batch: what the model takes, as one of `recalibrate`. Shapes and dtypes count; `jax.ShapeDtypeStruct` says them.
        kwargs: further ones for the model. A flag `train`, `training`, `is_training` or `deterministic` of it, if it is
            required or a bool by default, is set to evaluation where it is not given.

    Returns:
        The copy, told to evaluate, and a report: `report.folded` has the layers by the places of norms, `report.kept`
        says why others stay. Kernels keep their dtypes; a layer that had no bias has one. Shapes of the data may change
        afterwards; flags that lead elsewhere in the model may not, nor do methods that were not called.

    Raises:
        ValueError: a norm is told to train. TypeError: the model requires more than it is given.

    Paper: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", section 3.2.

    >>> rngs, x = nnx.Rngs(0), jnp.ones((2, 4))
    >>> model = nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), jn.nnx.BatchNorm(3, rngs=rngs), nnx.relu)
    >>> folded, report = jn.nnx.fold(model, x)
    >>> model.eval()
    >>> print(report, abs(folded(x) - model(x)).max() < 1e-6)
    layers.1 is in layers.0 True
    """
    copy: Any = nnx.clone(model)
    copy.eval()
    parts: list[Part] = []
    report = fold_parts(parts, *_marked(copy, batch, kwargs, parts))
    modules: dict[str, Any] = {_place(path): module for path, module in nnx.iter_modules(copy)}
    by_place = {part.place: part for part in parts}
    for place in dict.fromkeys(report.folded.values()):
        layer, arrays = modules[place], by_place[place].arrays
        layer.kernel.set_value(arrays["kernel"])
        layer.bias, layer.use_bias = nnx.Param(arrays["bias"]), True
    new = {id(modules[place]): Folded(by_place[place].dtype) for place in report.folded}
    return _replace(copy, new, set()), report


def _marked(model: nnx.Module, batch: Any, kwargs: Mapping[str, Any], parts: list[Part]) -> Any:
    """The program of a model in evaluation, with marked calls of `parts`; and its arguments."""
    args, options = model_arguments(batch, kwargs)
    options = eval_kwargs(model.__call__, args, options, "nnx.fold")  # pyright: ignore[reportAttributeAccessIssue]
    arrays = {_place(path): _values(module) for path, module in nnx.iter_modules(model)}
    graph, variables = nnx.split(model)

    def run(variables: Any, args: Any, options: Any) -> Any:
        net: Any = nnx.merge(graph, variables)
        for path, module in nnx.iter_modules(net):
            if is_layer(module) or is_norm(module):
                _mark(module, _place(path), arrays[_place(path)], parts)
        # What a model writes down is a result, too.
        return net(*args, **options), nnx.state(net, nnx.Not(nnx.Param))

    return program_of(run, variables, args, options)


def _place(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _values(module: Any) -> dict[str, Array]:
    """The values of the variables of a module, by name."""
    return {name: v.get_value() for name, v in vars(module).items() if isinstance(v, nnx.Variable)}


def _mark(module: Any, place: str, arrays: dict[str, Array], parts: list[Part]) -> None:
    """Gives a module a class of its own, whose calls are marked."""
    cls = type(module)

    def call(self: Any, *args: Any, **kwargs: Any) -> Array:
        here = _values(self)
        self.__class__ = cls
        y = marked_call(parts, self, place, arrays, here, self, args, kwargs)
        self.__class__ = marked
        if is_norm(self) and any(value is not here.get(name) for name, value in _values(self).items()):
            raise ValueError("nnx.fold: a norm is told to train. Tell the model to evaluate, as train=False.")
        return y

    marked = type(cls.__name__, (cls,), {"__call__": call})
    module.__class__ = marked


def _replace(node: Any, new: Mapping[int, Any], seen: set[int]) -> Any:
    """A model with other modules in the place of some, by their `id`, wherever it holds them."""
    if id(node) in new or id(node) in seen:
        return new.get(id(node), node)
    seen.add(id(node))
    if isinstance(node, tuple):
        return type(node)(_replace(value, new, seen) for value in node)
    if isinstance(node, MutableSequence):
        items: Any = enumerate(list(node))
    elif isinstance(node, MutableMapping):
        items = list(node.items())
    elif isinstance(node, nnx.Module):
        for name, value in [*vars(node).items()]:
            other = value if name.startswith("_pytree__") else _replace(value, new, seen)
            if other is not value and not isinstance(value, nnx.Variable):
                setattr(node, name, nnx.data(other))
        return node
    else:
        return node
    for key, value in items:
        node[key] = _replace(value, new, seen)
    return node
