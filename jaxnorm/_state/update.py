"""Running statistics from moments that are at hand: without a norm, and without data."""

from jax import lax
from jaxtyping import ArrayLike

from jaxnorm import _checks
from jaxnorm._state.running import advance
from jaxnorm._state.stream import as_statistics, with_residuals
from jaxnorm._types import Moments, RunningState


def update_running(
    state: RunningState, moments: Moments, *, momentum: ArrayLike | None = 0.99, ddof: int = 0
) -> RunningState:
    """Running statistics after a batch of which the moments are known, as `jn.batch_norm` would have them.

    mean ← m · mean + (1 − m) · μ,    var ← m · var + (1 − m) · σ² n / (n − ddof)

    For what is no call of a norm: a norm that is folded into a kernel and trained on, moments that were merged over
    parts of a batch or over hosts.

    Args:
        state: `RunningStats`, or what `jn.accumulate` or `jn.recalibrate` makes of them.
        moments: those of the batch for each channel, of the shape of `state.mean`: `jn.moments(x, axis)` over all axes
            but that of the channels.
        momentum: m, the weight of the old value (PyTorch's is 1 − m); None averages all updates equally, and needs a
            state with a `weight_sum`.
        ddof: 1 makes the running variance the unbiased one.

    Returns:
        The new state, with shapes and dtypes of the old one. A channel with no data, or with NaN in its moments, keeps
        its state. It has no derivative in the moments.

    Raises:
        TypeError: `state` is not RunningStats, or narrower than float32; `moments` is not Moments. ValueError: their
            shapes differ; an argument is out of range.

    Paper: Ioffe & Szegedy 2015, "Batch Normalization".

    >>> params, state = jn.BatchNorm().init(2)
    >>> batch = jn.moments(jnp.array([[1.0, 10.0], [3.0, 30.0]]), 0)
    >>> print(jn.update_running(state, batch, momentum=0.9).mean.round(3))
    [0.2 2. ]
    """
    who = "update_running"
    _checks.same_channels(state, moments, who)
    _checks.averages(state, who)
    _checks.ddof(ddof, who)
    stats = lax.stop_gradient(as_statistics(with_residuals(moments)))
    mean = stats.pivot
    _checks.running(state, mean, range(mean.ndim), True, momentum, who)
    return advance(state, stats, _checks.momentum(momentum, mean, who), ddof)
