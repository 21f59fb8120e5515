"""What norms keep, and moments."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Inexact

from jaxnorm._core.numerics import reciprocal, wide_dtype


class Moments(NamedTuple):
    """Count (or sum of weights), mean, and sum of squared deviations from it; the extremes where they are asked for.

    n = Σ wᵢ,    μ = Σ wᵢ xᵢ / n,    M2 = Σ wᵢ |xᵢ − μ|²

    All have the mean's shape; all but the means are real. `count`, `mean` and `m2` are as near as a number can be, and
    the residuals what that loses: to a count of 2²⁴ one more is nothing in float32, and a mean of 1e6 has steps of
    1/16. A residual of None, as in moments that are written by hand, reads as 0. `min` and `max` are None unless
    `extremes` were asked for. `jn.merge` makes moments a commutative monoid, with `Moments.zeros` as its identity.

    Papers: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances";
    Dekker 1971, "A floating-point technique for extending the available precision".

    >>> count, mean, m2, *_ = jn.moments(jnp.array([1.0, 2.0, 3.0]))
    >>> print(count, mean, m2)
    3.0 2.0 2.0
    """

    count: Float[Array, "*shape"]  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: Inexact[Array, "*shape"]
    m2: Float[Array, "*shape"]
    count_residual: Float[Array, "*shape"] | None = None
    mean_residual: Inexact[Array, "*shape"] | None = None
    m2_residual: Float[Array, "*shape"] | None = None
    min: Float[Array, "*shape"] | None = None
    max: Float[Array, "*shape"] | None = None

    @classmethod
    def zeros(cls, shape: int | Sequence[int] = (), dtype: DTypeLike = jnp.float32, *, extremes: bool = False) -> Self:
        """Moments of no data, for means of this shape and dtype: the identity of `jn.merge`.

        >>> jn.Moments.zeros(2).count
        Array([0., 0.], dtype=float32)
        """
        dtype = wide_dtype(jnp.zeros((), dtype))
        real = jnp.finfo(dtype).dtype
        # Each an array of its own: no buffer can be donated twice.
        zeros = [jnp.zeros(shape, dtype if i in (1, 4) else real) for i in range(6)]
        return cls(*zeros, *([jnp.full(shape, v, real) for v in (jnp.inf, -jnp.inf)] if extremes else []))

    @property
    def var(self) -> Float[Array, "*shape"]:
        """The biased variance M2 / n; 1 where there is no data, so that dividing by it is safe."""
        return jnp.where(self.count == 0, 1, self.m2 * reciprocal(self.count))

    @property
    def std(self) -> Float[Array, "*shape"]:
        """√var, with derivative 0 where it is 0."""
        positive = self.var > 0
        root = jnp.sqrt(jnp.where(positive, self.var, 1))
        return jnp.where(positive, root, jnp.where(jnp.isnan(self.var), jnp.nan, 0))


class RunningStats(NamedTuple):
    """Exponential averages of the batch mean and variance, and the weight of all updates where that has to be known.

    mean ← m · mean + (1 − m) · μ,    var ← m · var + (1 − m) · σ²

    This is not a merge of moments: old batches are forgotten, at the rate of the momentum m. `mean` and `var` have
    shape (channels,); `var` is real. They begin as (0, 1), of which m^steps is left.

    `weight_sum` (channels,), float32, is None unless `momentum=None` or `debias=True` asks `init` for it. With it
    averages are of the data alone, from the first update on, and the state says so to whoever updates it:

    w′ = m w + 1 − m,    keep = m w / w′,    mean ← keep · mean + (1 − keep) · μ,    and so for var

    (with `momentum=None`: w′ = w + 1, keep = w / w′). Channels without data change nothing.

    Papers: Ioffe & Szegedy 2015, "Batch Normalization", section 3.1; Kingma & Ba 2015, "Adam", section 3, on the bias.

    >>> params, state = jn.BatchNorm().init(2)
    >>> print(*state)
    [0. 0.] [1. 1.] None
    """

    mean: Inexact[Array, " channels"]
    var: Float[Array, " channels"]
    weight_sum: Float[Array, " channels"] | None = None


class Accumulating(NamedTuple):
    """Running statistics while the batches that come are parts of one, as `jn.accumulate` makes it of `RunningStats`.

    mean, var, weight_sum ← one update of `before` by all data `seen`

    `mean`, `var` and `weight_sum` are those of `RunningStats`, with what was seen so far. `before` are the
    `RunningStats` to update; `seen` are the moments of the data, `Moments` of the shape of `mean`.

    >>> params, state = jn.BatchNorm().init(2)
    >>> jn.accumulate(state).before.mean
    Array([0., 0.], dtype=float32)
    """

    mean: Inexact[Array, " channels"]
    var: Float[Array, " channels"]
    weight_sum: Float[Array, " channels"] | None
    before: RunningStats
    seen: Moments


class Recalibrating(NamedTuple):
    """Running statistics while `jn.recalibrate` replaces them by those of all data `seen`.

    mean, var = those of `seen`, once there are data

    `mean`, `var` and `weight_sum` are those of `RunningStats`, `seen` are `Moments` of the shape of `mean`. A norm with
    such a state uses the statistics of the batch, in evaluation, too. One that is frozen gives it back with NaN for
    what was `seen`: data are not to replace its statistics.

    >>> params, state = jn.BatchNorm().init(1)
    >>> def step(state, x):
    ...     print(type(state).__name__)
    ...     return jn.batch_norm(x, state, train=False)[1]
    >>> state = jn.recalibrate(step, state, [jnp.array([[1.0], [3.0]])])
    Recalibrating
    """

    mean: Inexact[Array, " channels"]
    var: Float[Array, " channels"]
    weight_sum: Float[Array, " channels"] | None
    seen: Moments


class Inspection(NamedTuple):
    """Running statistics beside those of data, per channel, as `jn.inspect` gives it; a pytree of numbers to log.

    With μ and σ² of all the data, and μ_b and σ_b² of each batch, all of shape (channels,) and float32:

    `mean_distance` = |mean − μ| / σ,    `var_ratio` = var / σ²,    of running statistics: best 0 and 1
    `batch_mean_error` = √⟨|μ_b − μ|²⟩ / σ,    `batch_var_error` = √⟨(σ_b²/σ² − 1)²⟩,    what a batch is off by
    `start_weight` = m^steps,    the part that the averages still owe to their start at (0, 1): none with a weight_sum,
    all of it where they are exactly that
    `y_mean`, `y_std`,    of y in evaluation: a channel with `y_std` near 0 is dead, and where |`y_mean`| is more than
    3 `y_std`, what comes after it, if that is a relu, passes all or nothing of it, but for a tenth
    `skipped`,    the number of batches in which a channel had no data, or such that were not finite

    A number that is not known is NaN: `start_weight` without `steps`, y without the norm or where it is no batch norm;
    distances of a constant. Of `jn.InstanceNorm(track=True)`, σ² is within examples. In a scan: (layers, channels).
    Paper: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm".

    >>> jn.Inspection(*jnp.zeros((8, 3))).var_ratio
    Array([0., 0., 0.], dtype=float32)
    """

    mean_distance: Float[Array, " channels"]
    var_ratio: Float[Array, " channels"]
    batch_mean_error: Float[Array, " channels"]
    batch_var_error: Float[Array, " channels"]
    start_weight: Float[Array, " channels"]
    y_mean: Float[Array, " channels"]
    y_std: Float[Array, " channels"]
    skipped: Float[Array, " channels"]


RunningState = RunningStats | Accumulating | Recalibrating
"""`RunningStats`, or one of the two forms that they have while several batches are taken together."""

ADDED = ("before", "seen")
"""The fields that these forms have besides."""


def plain(state: RunningState) -> RunningStats:
    """The mean, variance and weight_sum alone. They are up to date after each batch: nothing is computed."""
    return RunningStats(state.mean, state.var, state.weight_sum)


def uncounted(seen: Moments) -> Moments:
    """Moments of a norm that is frozen, so that data do not replace its statistics: counts of data are never NaN."""
    return jax.tree.map(lambda v: jnp.full_like(v, jnp.nan), seen)


def running_fields(state: RunningState) -> dict[str, Any]:
    """Running statistics as variables by name; a `weight_sum` of None is none."""
    return {name: value for name, value in state._asdict().items() if name != "weight_sum" or value is not None}


def running_of(variables: Mapping[str, Any]) -> RunningState:
    """Running statistics from variables by name: their names tell which form it is."""
    mean, var, weight_sum = variables["mean"], variables["var"], variables.get("weight_sum")
    if "seen" not in variables:
        return RunningStats(mean, var, weight_sum)
    if "before" in variables:
        return Accumulating(mean, var, weight_sum, variables["before"], variables["seen"])
    return Recalibrating(mean, var, weight_sum, variables["seen"])


class SingularVectors(NamedTuple):
    """The state of `jn.spectral_norm`: its estimate of the vectors of the largest singular value σ.

    σ = uᵀ W v

    `u` has the shape of the kernel along its outputs and 1 elsewhere, `v` the other way round; both are of length 1.

    Paper: Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks".

    >>> _, state = jn.spectral_norm(jnp.array([[3.0, 0.0], [0.0, 1.0]]), steps=20)
    >>> print(abs(state.u).round(3), abs(state.v).T.round(3))
    [[1. 0.]] [[1. 0.]]
    """

    u: Float[Array, "*kernel"]
    v: Float[Array, "*kernel"]
