"""Several batches as one: running statistics of all parts of a batch, or of replicas that trained apart."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike

from jaxnorm import _checks
from jaxnorm._annotations import Names
from jaxnorm._core.moments_about import Statistics
from jaxnorm._core.numerics import real_dtype, wide_dtype
from jaxnorm._core.reduction import Reduction
from jaxnorm._core.sharding import stack
from jaxnorm._core.statistics import pooled
from jaxnorm._state.running import begin_accumulating, nan_if_negative
from jaxnorm._state.tree import map_stats
from jaxnorm._types import RunningState, RunningStats, plain

State = TypeVar("State")


def accumulate(state: State, start: ArrayLike = True) -> State:
    """Running statistics to which the batches from here on are parts of one: they make one update together.

    mean ← m · mean + (1 − m) · μ,    var ← m · var + (1 − m) · σ²,    with μ and σ² of all parts, merged

    For gradient accumulation: a step of the optimizer is an update of the statistics, as if the batch were whole. Each
    part is still normalized by its own statistics, without which it would have to wait for the others: y and gradients
    are those of small batches. It is not `momentum` to the power 1/K, either: unequal parts weigh by their counts, and
    the variance between parts counts.

    Args:
        state: `RunningStats`, or any pytree with such in it, as the state of a model; mappings of `mean` and `var`, as
            in `batch_stats` of flax.linen, count as such. For nnx: `jaxnorm.nnx.accumulate`.
        start: whether a whole batch begins here; False goes on with the one begun. It may be traced: `optax.MultiSteps`
            knows by `has_updated(opt_state)`.

    Returns:
        The same with `Accumulating` in the place of `RunningStats`, of constant structure and shapes: a carry for
        `lax.scan`.
        `jn.commit` turns it back. A state without running statistics, of other norms, is left as it is.

    Raises:
        TypeError: the state is one of flax.nnx.

    Paper: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    >>> bn = jn.BatchNorm(momentum=0.9)
    >>> params, state = bn.init(1)
    >>> state = jn.accumulate(state)
    >>> for part in (jnp.array([[1.0], [3.0]]), jnp.array([[8.0]])):
    ...     y, state = bn.apply(params, state, part, train=True)
    >>> print(jn.commit(state).mean.round(3))  # as of one batch of three
    [0.4]
    """
    _checks.reject_nnx_variables(state, "accumulate")
    return map_stats(lambda stats: begin_accumulating(stats, start), state)


def commit(state: State) -> State:
    """Running statistics after the parts that `jn.accumulate` took as one; the other end of it.

    commit(accumulate(state)) = state

    Args:
        state: `Accumulating`, or any pytree with such in it.

    Returns:
        The same with `RunningStats` in their place, of their shapes.

    Raises:
        TypeError: the state is one of flax.nnx.

    >>> params, state = jn.BatchNorm().init(1)
    >>> jn.commit(jn.accumulate(state)) == state
    True
    """
    _checks.reject_nnx_variables(state, "commit")
    return map_stats(plain, state)


def merge_running(
    *states: State,
    axis: int | None = None,
    axis_name: Names | None = None,
    weights: Sequence[float] | ArrayLike | None = None,
) -> State:
    """Running statistics of replicas that trained apart, as one: the variance of their means is part of the variance.

    mean = Σ aᵢ meanᵢ,    var = Σ aᵢ (varᵢ + |meanᵢ − mean|²),    weight_sum = Σ aᵢ weight_sumᵢ,    with Σ aᵢ = 1

    To average variances alone, as `jax.lax.pmean` over states does, would lose how far the means lie apart. What states
    have in common counts once, however often they are merged.

    Args:
        states: `RunningStats`, or pytrees with such in them, as `batch_stats` of flax.linen, of one structure. With
            `axis` a single one, in which all are stacked. What else they hold is that of the first.
        axis: the axis along which they are stacked.
        axis_name: mapped axes (of vmap, pmap, shard_map): states of other devices are merged in.
        weights: one per state, on each device, of at least 0: their data, in federated training. They are divided by
            their sum; None weighs all the same.

    Returns:
        One state, of the shapes of each. A channel whose weight_sum is 0 knows nothing, and has no say beside others. A
        variance below 0, which is none, gives NaN.

    Raises:
        TypeError: there is nothing to merge, or states are those of flax.nnx. ValueError: `axis` is given with several
            states, or is none of theirs; their structures differ; `weights` are not one per state, negative, or all 0.
            NameError: `axis_name` is not bound.

    Paper: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    >>> a = jn.RunningStats(jnp.array([0.0]), jnp.array([1.0]))
    >>> b = jn.RunningStats(jnp.array([2.0]), jnp.array([1.0]))
    >>> print(*jn.merge_running(a, b))
    [1.] [2.] None
    """
    _checks.several(states, axis, "merge_running")
    _checks.reject_nnx_variables(states, "merge_running")
    reduction = Reduction((0,), _checks.names(axis_name, "merge_running"))

    def merged(*parts: RunningState) -> RunningStats:
        mean, var, weight_sum = jax.tree.map(stack, *map(plain, parts)) if axis is None else _in_front(parts[0], axis)
        shares = _shares(weights, mean, reduction)
        if weight_sum is not None:
            shares, weight_sum = _by_weight_sum(shares, weight_sum, reduction)
        n, var_ = shares.astype(real_dtype(mean)), nan_if_negative(var)
        parts_stats = Statistics(n, mean.astype(wide_dtype(mean)), None, var_.astype(n.dtype))
        whole = pooled(reduction, parts_stats)
        return RunningStats(whole.mean[0].astype(mean.dtype), whole.var[0].astype(var.dtype), weight_sum)

    return map_stats(merged, *states)


def _shares(weights: Any, mean: Array, reduction: Reduction) -> Array:
    """The weight of each of a stack of states, by channel; together 1, on all devices."""
    weights = jnp.ones(mean.shape[:1]) if weights is None else jnp.asarray(weights, jnp.float32)
    _checks.shares(weights, mean, "merge_running")
    weights = weights / lax.psum(weights.sum(), reduction.axis_names)
    return jnp.broadcast_to(weights.reshape(-1, *[1] * (mean.ndim - 1)), mean.shape)


def _by_weight_sum(shares: Array, weight_sum: Array, reduction: Reduction) -> tuple[Array, Array]:
    """The weights of those that know something, and the weight_sum of what comes of them."""
    names = reduction.axis_names
    total = lax.psum((shares * weight_sum).sum(0), names)
    known = weight_sum > 0
    somebody = lax.psum(known.sum(0, keepdims=True, dtype=jnp.int32), names) > 0
    # Where nobody knows anything, all have their initial values.
    return jnp.where(known | ~somebody, shares, 0), total


def _in_front(state: RunningState, axis: int) -> RunningStats:
    """A stack of states, with that axis as the first."""
    axis = _checks.axis(axis, state.mean.ndim, "merge_running: axis", "the mean")
    return jax.tree.map(lambda v: jnp.moveaxis(v, axis, 0), plain(state))
