"""Layers and norms of Flax in the terms of `fold`, whether of linen or of nnx."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import nnx
from jaxtyping import Array

from jaxnorm._flax import layout
from jaxnorm._specs.base import Spec
from jaxnorm._specs.norms import BatchNorm, Identity
from jaxnorm._trained.model_folding import Part
from jaxnorm._trained.neighbours import mark_input, mark_output, mark_variables
from jaxnorm._types import Affine

_DENSE = nn.Dense, nnx.Linear
_GENERAL = nn.DenseGeneral, nnx.LinearGeneral
_CONVOLUTIONS = nn.Conv, nnx.Conv
_TRANSPOSED = nn.ConvTranspose, nnx.ConvTranspose
_MODULES = (nn.BatchNorm.__module__, nnx.BatchNorm.__module__, "jaxnorm.linen", "jaxnorm.nnx")
"""Where the norms are that are known; a subclass may do anything."""
_ARITHMETIC = (
    "dot_general", "dot_general_cls", "conv_general_dilated", "conv_general_dilated_cls", "promote_dtype",
)  # fmt: skip
"""How a layer may be told to do something else with its kernel, as to round it."""
_LAYERS = (*_DENSE, *_GENERAL, *_CONVOLUTIONS, *_TRANSPOSED)


def is_layer(module: Any) -> bool:
    """Whether a module is a linear layer; a subclass may do anything with its kernel."""
    return type(module) in _LAYERS


def program_of(run: Callable[..., Any], *arguments: Any) -> tuple[Any, list[Any]]:
    """The program of a function and its arguments, of which those that are no arrays are static."""
    leaves, structure = jax.tree.flatten(arguments)
    traced = [number for number, leaf in enumerate(leaves) if hasattr(leaf, "shape")]

    def of_arrays(arrays: Any) -> Any:
        every = dict(enumerate(leaves)) | dict(zip(traced, arrays, strict=True))
        return run(*jax.tree.unflatten(structure, every.values()))

    given = [leaves[number] for number in traced]
    return jax.make_jaxpr(of_arrays)(given), given


def first_argument(module: Any, args: Any, kwargs: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The data that a norm or a layer of Flax is called with; and what else."""
    if args:
        return args[0], tuple(args[1:]), dict(kwargs)
    name = "inputs" if is_layer(module) else "x"
    return kwargs[name], (), {key: value for key, value in kwargs.items() if key != name}


def marked_call(
    parts: list[Part], module: Any, place: str, arrays: dict[str, Array], variables: Mapping[str, Any],
    call: Callable[..., Any], args: Any, kwargs: Mapping[str, Any],
) -> Array:  # fmt: skip
    """The call of a norm or a layer, marked in the program, and added to `parts`.

    `arrays` are its variables by name, and `variables` what stands for them in the program.
    """
    number = len(parts)
    mark_variables(variables, number)
    x, args, kwargs = first_argument(module, args, kwargs)
    parts.append(_part(module, place, arrays, x, kwargs))
    y = call(mark_input(x, number), *args, **kwargs)
    parts[number] = parts[number]._replace(dtype=y.dtype)
    return mark_output(y, number)


def _part(module: Any, place: str, arrays: dict[str, Array], x: Any, given: Mapping[str, Any]) -> Part:
    """A module as it is called, with `x` and what else is `given`."""
    if is_layer(module):
        return Part(place, None, arrays, _refusal_of_layer(module), _options(module, x), x.dtype)
    spec = spec_of(module)
    return Part(place, spec, arrays, _refusal_of_norm(module, spec, x, given), {}, x.dtype)


def spec_of(module: Any) -> Spec:
    """The spec of a norm; of a drop-in or one of Flax, as far as it has running statistics."""
    if getattr(module, "spec", None) is not None:
        return module.spec
    if not isinstance(module, nn.BatchNorm | nnx.BatchNorm):
        return Identity()
    return BatchNorm(
        epsilon=module.epsilon, momentum=module.momentum, use_scale=module.use_scale, use_bias=module.use_bias,
        scale_offset=getattr(module, "scale_offset", 0.0),
    )  # fmt: skip


def affine_of(norm: Any, variables: Mapping[str, Any]) -> Affine | None:
    """The affine map of a norm of a batch, by running statistics; None for one that does something else besides."""
    plain = getattr(norm, "spec", norm)
    return Affine(variables.get("scale"), variables.get("bias")) if type(plain) is BatchNorm else None


def _refusal_of_layer(module: Any) -> str | None:
    if type(module) in _GENERAL and not _is_matrix(module):
        return f"Its layer, {type(module).__name__}, has its outputs along several axes, or a kernel for each example."
    if getattr(module, "mask", None) is not None:
        return f"Its layer, {type(module).__name__}, has a mask for its kernel."
    defaults = inspect.signature(type(module).__init__).parameters
    for name in _ARITHMETIC:
        if name in defaults and getattr(module, name) is not defaults[name].default:
            return f"Its layer, {type(module).__name__}, has {name}={getattr(module, name)!r}."
    return None


def _refusal_of_norm(module: Any, spec: Any, x: Any, given: Mapping[str, Any]) -> str | None:
    if type(module).__module__ not in _MODULES:
        return f"{type(module).__name__} is a class of its own, and nobody knows whether a kernel can do what it does."
    if not getattr(spec, "_tracks", False):
        name = type(spec if hasattr(module, "spec") else module).__name__
        return f"{name} is not by running statistics."
    if given.get("scale") is not None or given.get("bias") is not None:
        return "It is given a scale or a bias in its call."
    last = x.ndim - 1
    if isinstance(module, nn.BatchNorm | nnx.BatchNorm):
        axes = layout.batch_norm(module, x, True).feature_axes
    else:
        axes = (getattr(spec, "channel_axis", last) % x.ndim,)
    if axes != (last,):
        return f"Its channels are along axis {axes[0]} of data of shape {x.shape}, and those of a layer along the last."
    return None


def _is_matrix(module: Any) -> bool:
    """Whether a general dense layer has its outputs along one axis, and one kernel for all examples."""
    if isinstance(module, nn.Module):
        return np.size(module.features) == 1 and np.size(module.batch_dims) == 0
    return len(module.out_features) == 1 and not module.batch_axis


def _options(module: Any, x: Any) -> dict[str, Any]:
    """How `fold` is told of a layer."""
    if type(module) in _DENSE:
        return {}
    if type(module) in _GENERAL:
        last = max(axis % x.ndim for axis in np.atleast_1d(module.axis)) == x.ndim - 1
        return {} if last else {"padding": f"axis={module.axis}"}
    if type(module) in _TRANSPOSED:
        # Its border has fewer terms, whatever its padding: no norm before it is a part of it.
        flipped = {"output_axis": -2, "input_axis": -1} if module.transpose_kernel else {}
        return {"padding": "of a transposed convolution", **flipped}
    return {"groups": module.feature_group_count, "padding": _padding(module)}


def _padding(module: Any) -> Any:
    """The padding with zeros: none by values of the data, and none where a kernel of one position needs none."""
    sizes = (module.kernel_size,) if isinstance(module.kernel_size, int) else module.kernel_size
    spread = module.input_dilation
    if any(n not in (None, 1) for n in jax.tree.leaves(spread)):
        return f"input_dilation={spread}"
    padding = module.padding
    data = padding in ("CIRCULAR", "REFLECT")
    return "VALID" if data or (isinstance(padding, str) and all(n == 1 for n in sizes)) else padding
