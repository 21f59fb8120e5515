"""Messages about norms that can't become a part of the layer beside them."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxnorm._types import Affine, Moments, RunningState


def folds(spec: Any, params: Any, state: Any) -> int:
    """The channels of a norm that is an affine map of each of them in evaluation."""
    name = type(getattr(spec, "spec", spec)).__name__
    if not getattr(spec, "_tracks", False) or getattr(spec, "_params", None) is not Affine:
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
    return state.mean.shape[0]


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
