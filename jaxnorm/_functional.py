"""The verbs: which positions share moments, then standardize, then the affine map."""

from collections.abc import Hashable, Sequence
from typing import Literal

from jaxtyping import Array, ArrayLike, Inexact

from jaxnorm import _checks
from jaxnorm._normalize import normalize, normalize_tracking
from jaxnorm._over import Over
from jaxnorm._trees import Accumulating, RunningStats, recalibrating

Axes = int | Sequence[int]
Names = Hashable | Sequence[Hashable]
Implementation = Literal["xla", "pallas"] | None
Data = Inexact[ArrayLike, "..."]
Result = Inexact[Array, "..."]


@_checks.in_other_words
def instance_norm(
    x: Data,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    channel_axis: int = -1,
    batch_axis: Axes | None = 0,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    axis_name: Names | None = None,
) -> Result:
    """Instance normalization: statistics per example and channel, the same in training and evaluation.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over all axes but `channel_axis` and `batch_axis`

    Args:
        x: floating point or complex, any layout.
        scale, bias: γ and β: vectors over the channel axis, scalars, or arrays with the dimensions of `x`, each of
            the same size or 1 (one scale per example: conditional normalization).
        channel_axis: the axis of features: -1 for NHWC, 1 for NCHW.
        batch_axis: one axis of examples, several, or None for a single example.
        epsilon: ε, a number of at least 0.
        where: booleans or non-negative weights, with the dimensions of `x`, each of the same size or 1: what counts in
            the statistics. All positions are normalized with them; excluded ones may hold
            NaN or Inf, and give the bias there.
        axis_name: mapped axes over which the positions of an example are sharded.

    Returns:
        y, with the shape and dtype of `x`. Arithmetic is in float32 at least.

    Raises:
        TypeError: `x` is integer or boolean. ValueError: an argument does not fit `x`. NameError: an unbound name.

    Paper: Ulyanov, Vedaldi & Lempitsky 2016, "Instance Normalization: The Missing Ingredient for Fast Stylization".

    >>> x = jnp.array([[[1.0], [3.0]], [[10.0], [30.0]]])  # two examples, two positions, one channel
    >>> print(jn.instance_norm(x).squeeze().round(3))
    [[-1.  1.]
     [-1.  1.]]
    """
    x = _checks.data(x, "instance_norm")
    channel, positions = per_example(x, channel_axis, batch_axis, "instance_norm")
    _checks.positions(positions, x, "instance_norm")
    over = Over(positions, _checks.names(axis_name, "instance_norm"))
    return normalize(x, over, (channel,), scale, bias, epsilon=epsilon, where=where, who="instance_norm")


@_checks.in_other_words
def layer_norm(
    x: Data,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    axis_name: Names | None = None,
    implementation: Implementation = None,
) -> Result:
    """Layer normalization: statistics over the features of each example or position.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over `axis`

    Args:
        x: floating point or complex, any layout.
        scale, bias: γ and β, of the shape of the normalized axes in the order in which `x` has them, scalars, or
            arrays with the dimensions of `x`, each of the same size or 1.
        axis: the normalized axes.
        epsilon: ε, a number of at least 0.
        where: booleans or non-negative weights, with the dimensions of `x`, each of the same size or 1: what counts in
            the statistics. All positions are normalized with them; excluded ones may hold
            NaN or Inf, and give the bias there.
        axis_name: mapped axes over which the features are sharded.
        implementation: "xla", or "pallas" for a kernel each way (the last axes of `x`, no `where`; cuda and tpu); None
            chooses: on an H100 or H200 the kernel where it serves, elsewhere XLA.

    Returns:
        y, with the shape and dtype of `x`. Arithmetic is in float32 at least.

    Raises:
        TypeError: `x` is integer or boolean. ValueError: an argument does not fit `x`. NameError: an unbound name.

    Paper: Ba, Kiros & Hinton 2016, "Layer Normalization".

    >>> print(jn.layer_norm(jnp.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])).round(3))
    [[-1.225  0.     1.225]
     [-1.225  0.     1.225]]
    """
    x = _checks.data(x, "layer_norm")
    axes = _checks.axes(axis, x.ndim, "layer_norm: axis")
    over = Over(axes, _checks.names(axis_name, "layer_norm"))
    return normalize(
        x, over, axes, scale, bias, epsilon=epsilon, where=where, who="layer_norm", implementation=implementation,
    )  # fmt: skip


@_checks.in_other_words
def rms_norm(
    x: Data,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: Axes = -1,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    axis_name: Names | None = None,
    implementation: Implementation = None,
) -> Result:
    """Root mean square normalization: layer norm with the mean held at 0.

    y = γ x / √(⟨|x|²⟩ + ε) + β,    ⟨·⟩ over `axis`

    Args:
        x: floating point or complex, any layout.
        scale, bias: γ and β, of the shape of the normalized axes in the order in which `x` has them, scalars, or
            arrays with the dimensions of `x`, each of the same size or 1.
        axis: the normalized axes.
        epsilon: ε, a number of at least 0.
        where: booleans or non-negative weights, with the dimensions of `x`, each of the same size or 1: what counts in
            the mean. All positions are normalized with it; excluded ones may hold
            NaN or Inf, and give the bias there.
        axis_name: mapped axes over which the features are sharded.
        implementation: "xla", or "pallas" for a kernel each way (the last axes of `x`, no `where`; cuda and tpu); None
            chooses: on an H100 or H200 the kernel where it serves, elsewhere XLA.

    Returns:
        y, with the shape and dtype of `x`. Arithmetic is in float32 at least.

    Raises:
        TypeError: `x` is integer or boolean. ValueError: an argument does not fit `x`. NameError: an unbound name.

    Paper: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".

    >>> print(jn.rms_norm(jnp.array([3.0, -3.0])).round(3))
    [ 1. -1.]
    """
    x = _checks.data(x, "rms_norm")
    axes = _checks.axes(axis, x.ndim, "rms_norm: axis")
    over = Over(axes, _checks.names(axis_name, "rms_norm"), centered=False)
    return normalize(
        x, over, axes, scale, bias, epsilon=epsilon, where=where, who="rms_norm", implementation=implementation,
    )  # fmt: skip


@_checks.in_other_words
def group_norm(
    x: Data,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    groups: int,
    channel_axis: int = -1,
    batch_axis: Axes | None = 0,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    axis_name: Names | None = None,
) -> Result:
    """Group normalization: statistics per example and block of channels.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over the positions of an example and C / groups adjacent channels

    Args:
        x: floating point or complex, any layout.
        scale, bias: γ and β: vectors over the channel axis, scalars, or arrays with the dimensions of `x`, each of
            the same size or 1.
        groups: how many blocks the channels are cut into; 1 is layer norm over all but the batch, C is instance norm.
        channel_axis: the axis of features: -1 for NHWC, 1 for NCHW.
        batch_axis: one axis of examples, several, or None for a single example.
        epsilon: ε, a number of at least 0.
        where: booleans or non-negative weights, with the dimensions of `x`, each of the same size or 1: what counts in
            the statistics. All positions are normalized with them; excluded ones may hold
            NaN or Inf, and give the bias there.
        axis_name: mapped axes over which the positions of an example are sharded.

    Returns:
        y, with the shape and dtype of `x`. Arithmetic is in float32 at least.

    Raises:
        TypeError: `x` is integer or boolean. ValueError: an argument does not fit `x`, or the channels do not divide
            into groups. NameError: an unbound name.

    Paper: Wu & He 2018, "Group Normalization".

    >>> print(jn.group_norm(jnp.array([[1.0, 3.0, 10.0, 30.0]]), groups=2).round(3))
    [[-1.  1. -1.  1.]]
    """
    x = _checks.data(x, "group_norm")
    channel, positions = per_example(x, channel_axis, batch_axis, "group_norm")
    _checks.divides(groups, x.shape[channel], "group_norm")
    over = Over(positions, _checks.names(axis_name, "group_norm"), groups, channel)
    return normalize(x, over, (channel,), scale, bias, epsilon=epsilon, where=where, who="group_norm")


@_checks.in_other_words
def batch_norm(
    x: Data,
    state: RunningStats | Accumulating | None,
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
) -> tuple[Result, RunningStats | Accumulating | None]:
    """Batch normalization: statistics per channel, of the batch in training and running ones in evaluation.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² over all axes but `channel_axis`

    mean ← m · mean + (1 − m) · μ,    var ← m · var + (1 − m) · σ² n / (n − ddof)

    Args:
        x: floating point or complex, any layout.
        state: `RunningStats` of the channels, or what `jn.accumulate` makes of them. None in training: batch
            statistics alone, and no new state.
        scale, bias: γ and β: vectors over the channel axis, scalars, or arrays with the dimensions of `x`, each of
            the same size or 1.
        train: a Python bool: normalize with the batch's statistics and update the state, or with the state.
        channel_axis: the axis of features: -1 for NHWC, 1 for NCHW.
        momentum: m, the weight of the old value (PyTorch's is 1 − m); None averages all updates equally, and needs
            a state with a `weight_sum`. With one, averages are of the data alone from the first update on, without it
            m^steps is left of the initial state.
        epsilon: ε, a number of at least 0.
        ddof: 1 makes the running variance the unbiased one, as in PyTorch. y uses the biased one always.
        where: booleans or non-negative weights, with the dimensions of `x`, each of the same size or 1: what counts in
            the statistics. All positions are normalized with them; excluded ones may hold
            NaN or Inf, and give the bias there.
        axis_name: mapped axes over which the batch is sharded: the statistics are the whole batch's. The state is the
            same on all of them.
        virtual_batch_size: so many examples in a row, along axis 0 and then from device to device, are normalized on
            their own in training ("ghost batches", Hoffer, Hubara & Soudry 2017). It divides the whole batch, and may
            be less or more than a device's share of it. The running statistics are updated by the whole batch.

    Returns:
        y, with the shape and dtype of `x`, and the new state, with those of `state`. Arithmetic is in float32 at least.
        A channel with no data, or with NaN in its statistics, keeps its state. The new state has no derivative in `x`.

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
    train = training(train, state, "batch_norm")
    if train:
        _checks.averages(state, "batch_norm")
    x = _checks.data(x, "batch_norm")
    channel = _checks.axis(channel_axis, x.ndim, "batch_norm: channel_axis")
    names = _checks.names(axis_name, "batch_norm") if train else ()
    over = Over(tuple(a for a in range(x.ndim) if a != channel), names)
    return normalize_tracking(
        x, state, over, (channel,), scale, bias,
        train=train, momentum=momentum, ddof=ddof, epsilon=epsilon, where=where, ghost=virtual_batch_size,
        who="batch_norm",
    )  # fmt: skip


def per_example(x, channel_axis, batch_axis, who):
    """The channel axis, and those along which one channel of one example extends."""
    channel = _checks.axis(channel_axis, x.ndim, f"{who}: channel_axis")
    batch = () if batch_axis is None else _checks.axes(batch_axis, x.ndim, f"{who}: batch_axis")
    if channel in batch:
        raise ValueError(f"{who}: channel_axis={channel_axis} is among batch_axis={batch_axis}: x has shape {x.shape}.")
    return channel, tuple(a for a in range(x.ndim) if a != channel and a not in batch)


def training(train, state, who):
    """Whether statistics are those of the data: in training, and where the data are to replace the state."""
    return _checks.train(train, who) or recalibrating(state)
