"""The norms that all others are compared with."""

from jaxtyping import ArrayLike

from jaxnorm import _functional
from jaxnorm._annotations import Axes, Names
from jaxnorm._specs.base import Norm
from jaxnorm._specs.fields import leaf


class BatchNorm(Norm):
    """Batch normalization, `jn.batch_norm` with its parameters and running statistics.

    y = γ (x − μ) / √(σ² + ε) + β,    statistics of the batch in training, running ones in evaluation

    Leaves: `momentum`, `epsilon`. The rest is static. params: `Affine` of (channels,); state: `RunningStats`. With
    `debias=True` or `momentum=None`, `init` gives it a `weight_sum`, and averages are of the data alone: evaluation is
    right from the first update on. With `virtual_batch_size`, so many examples in a row are normalized on their own in
    training. Raises what `jn.batch_norm` does, when it is applied.

    Paper: Ioffe & Szegedy 2015, "Batch Normalization".

    >>> bn = jn.BatchNorm(momentum=0.9)
    >>> params, state = bn.init(2)
    >>> y, state = bn.apply(params, state, jnp.array([[1.0, 10.0], [3.0, 30.0]]), train=True)
    >>> print(state.mean.round(3))
    [0.2 2. ]
    """

    _tracking = _functional.batch_norm

    channel_axis: int = -1
    momentum: ArrayLike | None = leaf(default=0.99)
    debias: bool = False
    epsilon: ArrayLike = leaf(default=1e-5)
    ddof: int = 0
    axis_name: Names | None = None
    virtual_batch_size: int | None = None


class InstanceNorm(Norm):
    """Instance normalization, `jn.instance_norm` with its parameters.

    y = γ (x − μ) / √(σ² + ε) + β,    statistics per example and channel

    Leaves: `epsilon`, and `momentum` with `track`. The rest is static. params: `Affine` of (channels,); state: None.

    With `track`, evaluation is by running statistics, as with `track_running_stats` of PyTorch, and the state is
    `RunningStats`: per channel, the averages over examples of their means and variances. How far means lie apart is no
    part of the variance. mean ← m · mean + (1 − m) · ⟨μᵢ⟩,  var ← m · var + (1 − m) · ⟨σᵢ² nᵢ / (nᵢ − ddof)⟩. Examples
    with nᵢ ≤ ddof are left out. `momentum` and `ddof` are those of `jn.batch_norm`, `debias` that of `jn.BatchNorm`.
    Where the examples are on several devices under shard_map, average `mean` and `var` over them: `jax.lax.pmean`.
    Raises what `jn.instance_norm` does, when it is applied.

    Paper: Ulyanov, Vedaldi & Lempitsky 2016, "Instance Normalization".

    >>> norm = jn.InstanceNorm(channel_axis=1)
    >>> y, _ = norm.apply(*norm.init(1), jnp.array([[[1.0, 3.0]]]), train=True)
    >>> print(y.round(3))
    [[[-1.  1.]]]
    """

    _verb = _functional.instance_norm
    _tracking = _functional.instance_norm_tracking

    channel_axis: int = -1
    batch_axis: Axes | None = 0
    epsilon: ArrayLike = leaf(default=1e-5)
    axis_name: Names | None = None
    track: bool = False
    momentum: ArrayLike | None = leaf(default=0.99)
    debias: bool = False
    ddof: int = 0

    @property
    def _tracks(self) -> bool:
        return self.track

    def _leaves(self) -> tuple[str, ...]:
        return tuple(name for name in self._numbers if self.track or name != "momentum")


class LayerNorm(Norm):
    """Layer normalization, `jn.layer_norm` with its parameters.

    y = γ (x − μ) / √(σ² + ε) + β,    statistics over `axis`

    Leaf: `epsilon`. The rest is static. params: `Affine` of the shape of the normalized axes; state: None. Raises what
    `jn.layer_norm` does, when it is applied.

    Paper: Ba, Kiros & Hinton 2016, "Layer Normalization".

    >>> norm = jn.LayerNorm(axis=(1, 2))
    >>> norm.init((2, 3))[0].scale.shape
    (2, 3)
    """

    _verb = _functional.layer_norm

    axis: Axes = -1
    epsilon: ArrayLike = leaf(default=1e-5)
    axis_name: Names | None = None


class RMSNorm(Norm):
    """Root mean square normalization, `jn.rms_norm` with its parameters.

    y = γ x / √(⟨|x|²⟩ + ε),    mean over `axis`

    Leaf: `epsilon`. The rest is static. params: `Affine` of the shape of the normalized axes; state: None. Raises what
    `jn.rms_norm` does, when it is applied.

    Paper: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization".

    >>> norm = jn.RMSNorm()
    >>> y, _ = norm.apply(*norm.init(2), jnp.array([3.0, -3.0]), train=True)
    >>> print(y.round(3))
    [ 1. -1.]
    """

    _verb = _functional.rms_norm

    use_bias: bool = False
    axis: Axes = -1
    epsilon: ArrayLike = leaf(default=1e-5)
    axis_name: Names | None = None


class GroupNorm(Norm):
    """Group normalization, `jn.group_norm` with its parameters.

    y = γ (x − μ) / √(σ² + ε) + β,    statistics per example and block of C / groups channels

    Leaf: `epsilon`. The rest is static. params: `Affine` of (channels,); state: None. Raises what `jn.group_norm` does,
    when it is applied; ValueError from `init` where the groups do not divide the channels.

    Paper: Wu & He 2018, "Group Normalization".

    >>> norm = jn.GroupNorm(groups=2)
    >>> y, _ = norm.apply(*norm.init(4), jnp.array([[1.0, 3.0, 10.0, 30.0]]), train=True)
    >>> print(y.round(3))
    [[-1.  1. -1.  1.]]
    """

    _verb = _functional.group_norm

    groups: int
    channel_axis: int = -1
    batch_axis: Axes | None = 0
    epsilon: ArrayLike = leaf(default=1e-5)
    axis_name: Names | None = None


class Identity(Norm):
    """No normalization: the affine map alone, in the place of a norm.

    y = γ x + β

    Static. params: `Affine` of (channels,); state: None. Raises TypeError or ValueError where an argument does not fit.

    >>> norm = jn.Identity()
    >>> y, _ = norm.apply(*norm.init(2), jnp.array([[3.0, 4.0]]), train=True)
    >>> print(y)
    [[3. 4.]]
    """

    _verb = _functional.affine

    channel_axis: int = -1
