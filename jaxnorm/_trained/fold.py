"""A norm by running statistics is an affine map of each channel: it can be a part of the linear layer beside it."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Inexact

from jaxnorm import _checks
from jaxnorm._core.numerics import wide_dtype, with_offset
from jaxnorm._core.standardize import inverse_root
from jaxnorm._specs.base import Norm, Spec
from jaxnorm._specs.frozen import FrozenNorm
from jaxnorm._state.running import nan_if_negative
from jaxnorm._types import Moments


def fold(
    spec: Spec,
    params: Any,
    state: Any,
    kernel: Inexact[Array, "..."],
    bias: Inexact[Array, " outputs"] | None = None,
    *,
    output_axis: int = -1,
    input_axis: int = -2,
    groups: int = 1,
    before: bool = False,
    padding: Any = "VALID",
) -> tuple[Array, Array]:
    """Kernel and bias of a dense layer or a convolution that does what it does with a norm after it, or before it.

    With a = (o + γ)/√(var + ε) and c = β − a μ, so that the norm is y = a x + c in evaluation:

    after: kernel ← a · kernel,  bias ← a · bias + c        before: kernel ← kernel · a,  bias ← bias + Σ kernel · c

    Args:
        spec: a norm with running statistics, frozen or not.
        params, state: those of the norm. `Moments` of a batch as state fold the norm as it is in training, for
            quantization-aware training to round the kernel. Gradients flow through all of them, but for the
            parameters of a norm that is frozen.
        kernel: of a dense layer or a convolution of any rank, strides and dilation, transposed, grouped or depthwise.
        bias: of (outputs,), or None for 0.
        output_axis, input_axis: of the kernel: -1 and -2 in JAX, 0 and 1 in PyTorch; in transposed convolutions of
            PyTorch 1 and 0.
        groups: those of the channels, `feature_group_count`.
        before: whether the norm comes before the layer.
        padding: of a layer after the norm, "VALID" or 0. Zeros that it pads with are not normalized, and by a folded
            layer they would be. Transposed convolutions always pad. Nobody sees which axis is meant where sizes agree:
            say `output_axis` for kernels of PyTorch.

    Returns:
        The kernel, of its shape and dtype, and the bias of (outputs,), of the kernel's dtype.

    Raises:
        TypeError: the norm takes statistics of the data in evaluation, too. ValueError: channels do not fit, or the
            layer pads.

    Paper: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", section 3.2.

    >>> bn = jn.BatchNorm(epsilon=0.0)
    >>> params, state = bn.init(1)
    >>> state = state._replace(mean=jnp.array([2.0]), var=jnp.array([4.0]))
    >>> kernel, bias = jn.fold(bn, params, state, jnp.array([[3.0]]), jnp.array([1.0]))
    >>> print(kernel, bias, bn.apply(params, state, jnp.array([5.0]) @ jnp.array([[3.0]]) + 1, train=False)[0])
    [[1.5]] [-0.5] [7.]
    """
    channels = _checks.folds(spec, Norm.apply, params, state)
    if isinstance(spec, FrozenNorm) and not spec.trained:
        params = lax.stop_gradient(params)
    kernel = _checks.data(kernel, "fold", "kernel")
    names = {"input_axis": input_axis, "output_axis": output_axis}
    axes = [_checks.axis(axis, kernel.ndim, f"fold: {name}", "kernel") for name, axis in names.items()]
    if before:
        _checks.unpadded(padding)
    _checks.real_beside(kernel, bias, *params, state.mean)
    sizes = [kernel.shape[axis] for axis in axes]
    outputs = _checks.layer_of(sizes, channels, groups, before, axes, kernel.shape)
    wide = jnp.moveaxis(kernel.astype(wide_dtype(kernel)), axes, (-2, -1))
    bias = jnp.zeros(outputs, wide.dtype) if bias is None else _checks.layer_bias(bias, outputs).astype(wide.dtype)
    mean, slope, offset = _line(spec, params, state, wide)
    if before:
        shift = wide * _by_input(offset - slope * mean, wide, groups)
        bias = bias + shift.reshape(-1, outputs).sum(0)
        wide = wide * _by_input(slope, wide, groups)
    else:
        # The mean first: a bias near it would lose its digits beside a · mean.
        bias = (bias - mean) * slope + offset
        wide = wide * _by_output(slope, wide)
    folded = jnp.moveaxis(wide, (-2, -1), axes).astype(kernel.dtype)
    return folded, bias.astype(kernel.dtype)


def _line(spec: Any, params: Any, state: Any, kernel: Array) -> tuple[Array, Array, Array]:
    """The mean, a and β of y = (x − mean) · a + β, each of (channels,), in the dtype of arithmetic on the kernel."""
    dtype, real = kernel.dtype, kernel.real.dtype
    residual = state.mean_residual if isinstance(state, Moments) else None
    mean = state.mean if residual is None else state.mean + residual
    epsilon = _checks.number(spec.epsilon, kernel, "fold", "epsilon").astype(real)
    r = inverse_root(nan_if_negative(jnp.asarray(state.var, real)) + epsilon).astype(dtype)
    slope = r if params.scale is None else r * with_offset(params.scale, spec.scale_offset, dtype)
    bias = jnp.zeros_like(slope) if params.bias is None else params.bias.astype(dtype)
    return jnp.asarray(mean, dtype), slope, bias


def _by_input(v: Array, kernel: Array, groups: int) -> Array:
    """A value of each channel before a layer, where the kernel (…, inputs, outputs) reads it: an output has a group."""
    *positions, inputs, outputs = kernel.shape
    each = jnp.repeat(v.reshape(groups, inputs).T, outputs // groups, axis=1)
    return each.reshape(*[1] * len(positions), inputs, outputs)


def _by_output(v: Array, kernel: Array) -> Array:
    """A value of each channel after a layer, where the kernel (…, inputs, outputs) makes it.

    In transposed convolutions of PyTorch, an input makes the outputs of its group alone.
    """
    *positions, inputs, outputs = kernel.shape
    of_groups = v.reshape(-1, outputs)
    each = jnp.repeat(of_groups, inputs // len(of_groups), axis=0) if len(of_groups) > 1 else of_groups
    return each.reshape(*[1] * len(positions), *each.shape)
