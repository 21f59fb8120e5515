"""The verbs with running statistics, which are used in evaluation."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Axes, Data, Implementation, Names, Result
from jaxnorm._core.numerics import narrow, real_dtype, wide_dtype, with_offset
from jaxnorm._core.reduction import Reduction, all_but
from jaxnorm._core.sharding import place_like
from jaxnorm._functional.normalize import data_and_output, normalize, normalize_tracking
from jaxnorm._functional.stateless import per_example
from jaxnorm._types import Recalibrating, RunningState


@_checks.in_other_words
def batch_norm(
    x: Data,
    state: RunningState | None,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    train: bool,
    channel_axis: int = -1,
    momentum: ArrayLike | None = 0.99,
    epsilon: ArrayLike = 1e-5,
    ddof: int = 0,
    where: ArrayLike | None = None,
    axis_name: Names | None = None,
    virtual_batch_size: int | None = None,
    scale_offset: float = 0.0,
    dtype: DTypeLike | None = None,
    implementation: Implementation = None,
) -> tuple[Result, RunningState | None]:
    """Batch normalization: statistics per channel, of the batch in training and running ones in evaluation.

    y = (o + γ) (x − μ) / √(σ² + ε) + β,    o = `scale_offset`, μ and σ² over all axes but `channel_axis`

    mean ← m · mean + (1 − m) · μ,    var ← m · var + (1 − m) · σ² n / (n − ddof)

    Args:
        x: floating point or complex, any layout.
        state: `RunningStats` of the channels, or what `jn.accumulate` or `jn.recalibrate` makes of them. None in
            training: batch statistics alone, and no new state.
        scale, bias: γ and β: vectors over the channel axis, scalars, or arrays with the dimensions of `x`, each of
            the same size or 1.
        train: a Python bool: normalize with the batch's statistics and update the state, or with the state. Under
            `jn.recalibrate` it is the batch's either way.
        channel_axis: the axis of features: -1 for NHWC, 1 for NCHW.
        momentum: m, the weight of the old value (PyTorch's is 1 − m); None averages all updates equally, and needs
            a state with a `weight_sum`. A state with a `weight_sum` averages the data alone from the first update on;
            without one, m^steps is left of the initial state.
        epsilon: ε, a number of at least 0.
        ddof: 1 makes the running variance the unbiased one, as in PyTorch. y uses the biased one always.
        where: booleans or non-negative weights, with the dimensions of `x`, each of the same size or 1: what counts in
            the statistics. All positions are normalized with them; an excluded NaN or Inf gives the bias.
        axis_name: mapped axes over which the batch is sharded: the statistics are the whole batch's. The state is the
            same on all of them.
        virtual_batch_size: so many examples in a row, along axis 0 and then from device to device, are normalized on
            their own in training ("ghost batches", Hoffer, Hubara & Soudry 2017). It divides the whole batch, and may
            be less or more than a device's share of it. The running statistics are updated by the whole batch.
        scale_offset: o, a static number, added to γ in the dtype of arithmetic: 1.0 where a scale is learnt as what
            differs from 1. Without a scale the factor is 1.
        dtype: that of y; None is that of `x`. One that is wider than `x` widens the arithmetic.
        implementation: None or "xla"; kernels are for layer and RMS norm.

    Returns:
        y, with the shape of `x`, and the new state, with those and the dtypes of `state`. Arithmetic is in float32 at
        least. A channel with no data, or with NaN in its statistics, keeps its state. The new state has no derivative
        in `x`.

    Raises:
        TypeError: `x` is integer or boolean, `train` is traced, `state` is not RunningStats. ValueError: an argument
            does not fit `x`, `virtual_batch_size` does not divide the batch. NameError: an unbound name.

    Paper: Ioffe & Szegedy 2015, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
    Covariate Shift".

    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> params, state = jn.BatchNorm().init(2)
    >>> y, state = jn.batch_norm(x, state, train=True, momentum=0.9)
    >>> print(y.round(3), state.mean.round(3))
    [[-1. -1.]
     [ 1.  1.]] [0.2 2. ]
    """
    train = uses_batch_stats(train, state, "batch_norm")
    x = _checks.data(x, "batch_norm")
    channel = _checks.axis(channel_axis, x.ndim, "batch_norm: channel_axis")
    names = _checks.names(axis_name, "batch_norm") if train else ()
    return normalize_tracking(
        x, state, Reduction(all_but(channel, x.ndim), names), (channel,), scale, bias,
        train=train, momentum=momentum, ddof=ddof, epsilon=epsilon, where=where,
        virtual_batch_size=virtual_batch_size, who="batch_norm",
        scale_offset=scale_offset, dtype=dtype, implementation=implementation,
    )  # fmt: skip


def instance_norm_tracking(
    x: Data, state: RunningState | None, scale: ArrayLike | None, bias: ArrayLike | None, *, train: bool,
    channel_axis: int, batch_axis: Axes | None, momentum: ArrayLike | None, epsilon: ArrayLike, ddof: int,
    where: ArrayLike | None, axis_name: Names | None, scale_offset: float, dtype: DTypeLike | None,
    implementation: Implementation,
) -> tuple[Result, RunningState | None]:  # fmt: skip
    """Instance norm in training; in evaluation a norm by running statistics of what the examples had."""
    train = uses_batch_stats(train, state, "InstanceNorm")
    x = _checks.data(x, "InstanceNorm")
    channel, positions = per_example(x, channel_axis, batch_axis, "InstanceNorm")
    _checks.positions(positions, x, "InstanceNorm")
    reduction = Reduction(positions, _checks.names(axis_name, "InstanceNorm") if train else ())
    return normalize_tracking(
        x, state, reduction, (channel,), scale, bias,
        train=train, momentum=momentum, ddof=ddof, epsilon=epsilon, where=where,
        example_axes=tuple(a for a in all_but(channel, x.ndim) if a not in positions), who="InstanceNorm",
        scale_offset=scale_offset, dtype=dtype, implementation=implementation,
    )  # fmt: skip


def batch_instance_norm(
    x: Data, state: RunningState | None, gate: ArrayLike, scale: ArrayLike | None, bias: ArrayLike | None, *,
    train: bool, channel_axis: int, batch_axis: Axes | None, momentum: ArrayLike | None, epsilon: ArrayLike, ddof: int,
    where: ArrayLike | None, axis_name: Names | None, scale_offset: float, dtype: DTypeLike | None,
    implementation: Implementation,
) -> tuple[Result, RunningState | None]:  # fmt: skip
    """A share ρ of batch norm and 1 − ρ of instance norm: (γ ρ) x̂_B + β + γ (1 − ρ) x̂_I, two norms with own scales.

    γ is the scale and its offset.
    """
    who = "BatchInstanceNorm"
    train = uses_batch_stats(train, state, who)
    x, output = data_and_output(_checks.data(x, who), dtype, scale_offset, who)
    channel, positions = per_example(x, channel_axis, batch_axis, who)
    names = _checks.names(axis_name, who) if train else ()
    of_batch, of_instance = _scales(gate, scale, x, channel, output.scale_offset, who)
    where = None if where is None else jnp.asarray(where)
    options: dict[str, Any] = {"epsilon": epsilon, "where": where, "who": who, "dtype": wide_dtype(x)}
    y, state = normalize_tracking(
        x, state, Reduction(all_but(channel, x.ndim), names), (channel,), of_batch, bias,
        train=train, momentum=momentum, ddof=ddof, implementation=implementation, **options,
    )  # fmt: skip
    by_instance = normalize(x, Reduction(positions), (channel,), of_instance, None, **options)
    return narrow(y + by_instance, where, output.dtype), state


def _scales(gate: Any, scale: Any, x: Array, channel: int, offset: float, who: str) -> tuple[Array, Array]:
    """(o + γ) ρ and (o + γ) (1 − ρ), in the dimensions of `x`."""
    if gate is None or jnp.iscomplexobj(gate):
        found = "None" if gate is None else f"of dtype {jnp.asarray(gate).dtype}"
        raise TypeError(f"{who}: gate is {found}. It holds a real number for each channel: 1 for batch norm alone.")
    gate = place_like(_checks.affine(gate, x, (channel,), who, "gate"), x).astype(real_dtype(x))
    # As jnp.clip, but with a derivative of 1 at both ends: there a gate is to move as between them.
    gate = jnp.where(gate < 0, 0, jnp.where(gate > 1, 1, gate))
    if scale is None:
        return gate, 1 - gate
    scale = place_like(_checks.affine(scale, x, (channel,), who, "scale"), x)
    scale = with_offset(scale, offset, wide_dtype(x) if jnp.iscomplexobj(scale) else real_dtype(x))
    return scale * gate.astype(scale.dtype), scale * (1 - gate).astype(scale.dtype)


def uses_batch_stats(train: bool, state: Any, who: str) -> bool:
    """Whether statistics are those of the data: in training, and while the state is recalibrated.

    Raises where a state that is to be updated is narrow. Drop-ins keep Flax's dtypes, and do not ask here.
    """
    if not _checks.train(train, who) and not isinstance(state, Recalibrating):
        return False
    _checks.averages(state, who)
    return True
