"""The norms that evolution found."""

from jaxtyping import ArrayLike

from jaxnorm import _functional
from jaxnorm._annotations import Axes, Names
from jaxnorm._specs.base import Norm
from jaxnorm._specs.fields import leaf
from jaxnorm._types import EvoAffine


class EvoNormS0(Norm):
    """EvoNorm-S0, `jn.evo_norm_s0` with its parameters: the activation is a part of it.

    y = γ x σ(v x) / √(s² + ε) + β,    s² per example and block of C / groups channels, σ the sigmoid

    Leaf: `epsilon`. The rest is static. params: `EvoAffine` of (channels,), with v = 1; state: None. Raises what
    `jn.evo_norm_s0` does, when it is applied; ValueError from `init` where the groups do not divide the channels.

    Paper: Liu et al. 2020, "Evolving Normalization-Activation Layers".

    >>> norm = jn.EvoNormS0(groups=1)
    >>> y, _ = norm.apply(*norm.init(1), jnp.array([[[1.0], [3.0]]]), train=True)
    >>> print(y.squeeze().round(3))
    [0.731 2.858]
    """

    _verb = _functional.evo_norm_s0
    _params = EvoAffine
    _ones = ("scale", "v")

    groups: int
    channel_axis: int = -1
    batch_axis: Axes | None = 0
    epsilon: ArrayLike = leaf(default=1e-5)
    axis_name: Names | None = None


class EvoNormB0(Norm):
    """EvoNorm-B0, `jn.evo_norm_b0` with its parameters and running statistics.

    y = γ x / max(√(s² + ε), v x + √(sᵢ² + ε)) + β,    s² of the batch, in evaluation the running one, sᵢ² per example

    Leaves: `momentum`, `epsilon`. The rest is static; `axis_name` are mapped axes over which the batch is sharded.
    params: `EvoAffine` of (channels,), with v = 1; state: `RunningStats`. Raises what `jn.evo_norm_b0` does, when it is
    applied.

    Paper: Liu et al. 2020, "Evolving Normalization-Activation Layers".

    >>> norm = jn.EvoNormB0()
    >>> params, state = norm.init(1)
    >>> x = jnp.array([[[-2.0], [2.0]], [[-2.0], [2.0]]])  # two examples, two positions, one channel
    >>> y, state = norm.apply(params, state, x, train=True)  # the deviation is 2, and v x + 2 is 0 and 4
    >>> print(y.squeeze().round(3))
    [[-1.   0.5]
     [-1.   0.5]]
    """

    _tracking = _functional.evo_norm_b0
    _params = EvoAffine
    _ones = ("scale", "v")

    channel_axis: int = -1
    batch_axis: Axes | None = 0
    momentum: ArrayLike | None = leaf(default=0.99)
    debias: bool = False
    epsilon: ArrayLike = leaf(default=1e-5)
    ddof: int = 0
    axis_name: Names | None = None
