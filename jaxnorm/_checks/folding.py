"""Messages about norms that can't become a part of the layer beside them."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxnorm._types import Affine, Moments, RunningState


def folds(spec: Any, plain_apply: Any, params: Any, state: Any) -> int:
    """The channels of a norm that is an affine map of each in evaluation, by the `apply` that all norms have."""
    norm = getattr(spec, "spec", spec)
    name = type(norm).__name__
    if getattr(norm, "_tracks", False) and type(norm).apply is not plain_apply:
        raise TypeError(f"fold: {name} has an apply of its own, and nobody knows whether a kernel can do what it does.")
    if not getattr(norm, "_tracks", False) or getattr(norm, "_params", None) is not Affine:
        raise TypeError(
            f"fold: {name} takes statistics of the data in evaluation, too, or has none: there is no kernel that does "
            f"what it does. A norm by running statistics, as BatchNorm, can be folded."
        )
    if not isinstance(params, Affine):
        raise TypeError(f"fold: params is a {type(params).__name__}, not Affine. The order is spec, params, state.")
    if not isinstance(state, RunningState | Moments):
        raise TypeError(f"fold: state is a {type(state).__name__}, not RunningStats, or Moments of a batch.")
    if np.ndim(state.mean) != 1:
        raise ValueError(
            f"fold: state.mean has shape {np.shape(state.mean)}. It is of (channels,): of stacked norms, fold each by "
            f"jax.vmap; of moments, leave keepdims out."
        )
    (channels,) = np.shape(state.mean)
    for what, value in (("params.scale", params.scale), ("params.bias", params.bias), ("state.var", state.var)):
        if value is not None and np.shape(value) != (channels,):
            raise ValueError(f"fold: {what} has shape {np.shape(value)}, and state.mean ({channels},): it is as long.")
    return channels


def real_beside(kernel: Array, *values: Any) -> None:
    """Raises where what is complex would lose its imaginary part in a real kernel."""
    if not jnp.iscomplexobj(kernel) and any(jnp.iscomplexobj(v) for v in values if v is not None):
        raise TypeError(f"fold: the kernel has dtype {kernel.dtype}, and the norm or the bias is complex.")


def unpadded(padding: Any) -> None:
    """Raises where a layer after a norm pads."""
    valid = padding.upper() == "VALID" if isinstance(padding, str) else not np.any(padding)
    if not valid:
        raise ValueError(
            f"fold: padding={padding!r}: the layer after the norm pads with zeros, which are not normalized. In the "
            f"folded layer they would be, and the border would differ. A norm folds into a layer after it that does "
            f"not pad."
        )


def layer_of(
    shape: Sequence[int], channels: int, groups: int, before: bool, axes: Sequence[int], kernel: Sequence[int]
) -> int:
    """The outputs of a layer whose kernel has this many inputs of a group, and outputs, beside a norm of channels."""
    inputs, outputs = shape
    if isinstance(groups, bool) or not isinstance(groups, int | np.integer) or groups < 1:
        raise ValueError(f"fold: groups={groups!r} is not a number of groups, 1 or more.")
    if axes[0] == axes[1]:
        raise ValueError(f"fold: input_axis and output_axis are both axis {axes[0]} of the kernel.")
    if before and inputs * groups == channels and outputs % groups == 0:
        return outputs
    if not before and (outputs == channels or (outputs * groups == channels and inputs % groups == 0)):
        return channels
    side, axis, n = ("input", axes[0], inputs) if before else ("output", axes[1], outputs)
    raise ValueError(
        f"fold: the norm {'before' if before else 'after'} the layer has {channels} channels, but the kernel, of shape "
        f"{tuple(kernel)}, has {n} along {side}_axis={axis}, with groups={groups}. Kernels of JAX have inputs and "
        f"outputs last; for one of PyTorch give output_axis=0, input_axis=1."
    )


def layer_bias(bias: Any, outputs: int) -> Array:
    """The bias of a layer with so many outputs."""
    bias = jnp.asarray(bias)
    if bias.shape != (outputs,):
        raise ValueError(f"fold: bias has shape {bias.shape}, and the layer has {outputs} outputs: it is ({outputs},).")
    return bias
