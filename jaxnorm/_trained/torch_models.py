"""Arrays of a whole model of PyTorch, and variables of one of Flax."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxnorm import _checks

Rules = Sequence[tuple[str, str]]
_LEAVES = {
    "weight": ("scale", "kernel", "embedding"),
    "bias": ("bias",),
    "running_mean": ("mean",),
    "running_var": ("var",),
    "num_batches_tracked": ("weight_sum",),
}
"""PyTorch's names of arrays, and Flax's, of which a module has one."""
_COLLECTIONS = ("params", "batch_stats")


class _Place(NamedTuple):
    """Where an array is among variables, as its path; and its shape there."""

    path: tuple[Any, ...]
    shape: tuple[int, ...]

    @property
    def module(self) -> str:
        """The module that has it, by the names on the way."""
        path = self.path[1:] if self.path[0] in _COLLECTIONS else self.path
        return "/".join(map(str, path[:-1]))

    @property
    def name(self) -> str:
        """All of the path, to be read."""
        return "/".join(map(str, self.path))


def load_variables(variables: Mapping[str, Any], state_dict: Mapping[str, Any], rules: Rules = ()) -> dict[str, Any]:
    """Variables of a model with the arrays of the same model in PyTorch, bit for bit: all layers, not norms alone.

    kernel = weight, with outputs last: (O, I) ↦ (I, O), (O, I, *k) ↦ (*k, I, O);    for norms as `from_state_dict`

    Args:
        variables: of a linen model, or of one of nnx, `nnx.to_pure_dict(nnx.state(model))`: names and shapes count.
        state_dict: the arrays of PyTorch's model, by name.
        rules: regular expressions for places in PyTorch's model, as "layer1.0.bn1", and what they become in ours, as
            "Block_0/BatchNorm_0", by `re.sub`, one after the other. What is left of dots becomes slashes.

    Returns:
        Variables of the same structure, with arrays of the dtypes of the `state_dict`. Collections but for params and
        batch_stats stay. A dense layer after a flattened image has its inputs in another order in PyTorch, where
        channels come first, and a transposed convolution is flipped there: these two are for you to turn.

    Raises:
        ValueError: arrays are missing, unexpected, of other shapes, or meet in one place; all of them are named.

    Paper: none.

    >>> variables = {"params": {"Dense_0": {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}}}
    >>> arrays = {"fc.weight": jnp.ones((2, 3)), "fc.bias": jnp.ones(2)}
    >>> jn.torch.load_variables(variables, arrays, [("^fc$", "Dense_0")])["params"]["Dense_0"]["bias"]
    Array([1., 1.], dtype=float32)
    """
    places = _fitting(variables, state_dict, rules, "torch.load_variables")
    by_path = {
        place.path: jnp.asarray(_turned(to_array(state_dict[key]), place, (1, 0), (-2, -1)))
        for key, place in places.items()
    }
    return _rebuilt(variables, by_path, ())


def dump_variables(
    variables: Mapping[str, Any], state_dict: Mapping[str, Any], rules: Rules = ()
) -> dict[str, np.ndarray]:
    """The arrays of a model for PyTorch, bit for bit: the way back from `load_variables`.

    load_variables(variables, dump_variables(variables, state_dict, rules), rules) = variables

    Args:
        variables, rules: as for `load_variables`.
        state_dict: of PyTorch's model: its names and shapes count. What our model does not have, as
            `num_batches_tracked`, stays as it is.

    Returns:
        Arrays of NumPy by PyTorch's names.

    Raises:
        ValueError: as `load_variables`.

    Paper: none.

    >>> variables = {"params": {"fc": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}}
    >>> like = {"fc.weight": jnp.zeros((2, 3)), "fc.bias": jnp.zeros(2)}
    >>> jn.torch.dump_variables(variables, like)["fc.weight"].shape
    (2, 3)
    """
    places = _fitting(variables, state_dict, rules, "torch.dump_variables")
    return {
        key: _turned(np.asarray(_at(variables, places[key].path)), places[key], (-2, -1), (1, 0))
        if key in places else to_array(value)
        for key, value in state_dict.items()
    }  # fmt: skip


def to_array(value: Any) -> np.ndarray:
    """An array of NumPy, bit for bit, of one, of JAX, or of a tensor of PyTorch."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    if str(value.dtype) == "torch.bfloat16":
        # NumPy knows it from JAX alone; float32 holds all of its numbers.
        return value.float().numpy().astype(jnp.bfloat16)
    return value.numpy()


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[_Place]:
    """The arrays among variables that a model of PyTorch has, too."""
    if isinstance(tree, Mapping):
        keys = [key for key in tree if path or not tree.keys() & set(_COLLECTIONS) or key in _COLLECTIONS]
        return [place for key in keys for place in _places(tree[key], (*path, key))]
    return [] if tree is None or path[-1] == "weight_sum" else [_Place(path, np.shape(tree))]


def _matched(variables: Any, state_dict: Mapping[str, Any], rules: Rules) -> dict[str, _Place | None]:
    """For each array of PyTorch its place among our variables, or None; a count of batches may have none."""
    by_module: dict[str, dict[str, _Place]] = {}
    for place in _places(variables):
        by_module.setdefault(place.module, {})[str(place.path[-1])] = place
    matched = {}
    for key in state_dict:
        where, _, leaf = key.rpartition(".")
        for pattern, ours in rules:
            where = re.sub(pattern, ours, where)
        leaves = by_module.get(where.replace(".", "/"), {})
        place = next((leaves[name] for name in _LEAVES.get(leaf, ()) if name in leaves), None)
        if place or leaf != "num_batches_tracked":
            matched[key] = place
    return matched


def _fitting(variables: Any, state_dict: Mapping[str, Any], rules: Rules, who: str) -> dict[str, _Place]:
    """For each array of PyTorch that our model has, too, its place; raises unless all of them fit."""
    matched = _matched(variables, state_dict, rules)
    places = {key: place for key, place in matched.items() if place}
    _checks.meet_once([place.name for place in places.values()], who)
    found: dict[str, Any] = {key: None for key in matched if key not in places}
    for key, place in places.items():
        found[place.name] = _turned(to_array(state_dict[key]), place, (1, 0), (-2, -1)).shape
    _checks.arrays_fit(found, {place.name: place.shape for place in _places(variables)}, who)
    return places


def _turned(value: np.ndarray, place: _Place, source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """An array with the inputs and outputs of a kernel moved from some axes to others."""
    return np.moveaxis(value, source, target) if place.path[-1] == "kernel" and value.ndim > 1 else value


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _rebuilt(tree: Any, by_path: Mapping[tuple[Any, ...], Any], path: tuple[Any, ...]) -> Any:
    if isinstance(tree, Mapping):
        return {key: _rebuilt(value, by_path, (*path, key)) for key, value in tree.items()}
    return by_path.get(path, tree)
