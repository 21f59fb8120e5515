"""The norms between batch norm and others: shares of several, or a correction towards running statistics."""

from typing import Any

from jaxtyping import ArrayLike

from jaxnorm import _functional
from jaxnorm._annotations import Axes, Names
from jaxnorm._specs.base import Norm
from jaxnorm._specs.fields import leaf
from jaxnorm._types import GatedAffine, SwitchableAffine


class BatchInstanceNorm(Norm):
    """Batch-instance normalization: per channel, a share of batch norm and the rest of instance norm.

    y = γ (ρ x̂_B + (1 − ρ) x̂_I) + β,    ρ the gate, clipped to [0, 1]

    x̂_B is x by the statistics of the batch, in evaluation running ones, and x̂_I by those of each example. Leaves:
    `momentum`, `epsilon`. The rest is static; `axis_name` are mapped axes over which the batch is sharded. params:
    `GatedAffine` of (channels,), with a gate of 1; state: `RunningStats`.

    Where the gate is outside of [0, 1] it has no derivative, and stays there. So clip it after each step of an
    optimizer, as the paper does: `params._replace(gate=params.gate.clip(0, 1))`. Raises what `jn.batch_norm` does, when
    it is applied.

    Paper: Nam & Kim 2018, "Batch-Instance Normalization for Adaptively Style-Invariant Neural Networks".

    >>> norm = jn.BatchInstanceNorm()
    >>> params, state = norm.init(1)
    >>> x = jnp.array([[[1.0], [3.0]], [[5.0], [7.0]]])  # two examples, two positions, one channel
    >>> def sweep(gate):
    ...     return norm.apply(params._replace(gate=gate), state, x, train=True)[0]
    >>> ys = jax.vmap(sweep)(jnp.array([[0.0], [1.0]]))  # from one norm to the other
    >>> print((100 * ys).round().astype(int).reshape(2, 4))
    [[-100  100 -100  100]
     [-134  -45   45  134]]
    """

    _tracking = _functional.batch_instance_norm
    _params = GatedAffine
    _ones = ("scale", "gate")

    channel_axis: int = -1
    batch_axis: Axes | None = 0
    momentum: ArrayLike | None = leaf(default=0.99)
    debias: bool = False
    epsilon: ArrayLike = leaf(default=1e-5)
    ddof: int = 0
    axis_name: Names | None = None

    def _initial(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        value = super()._initial(name, shape, dtype)
        return value.real if name == "gate" else value


class SwitchableNorm(Norm):
    """Switchable normalization: instance, layer and batch norm in shares that are learnt, of means and of variances.

    y = γ (x − Σ wₖ μₖ) / √(Σ wₖ′ σₖ² + ε) + β,    w and w′ the softmax of three logits each

    The statistics of the batch are running ones in evaluation. Leaves: `momentum`, `epsilon`. The rest is static;
    `axis_name` are mapped axes over which the batch is sharded. params: `SwitchableAffine` of (channels,) and (3,), all
    logits 1; state: `RunningStats`. Raises what `jn.batch_norm` does, when it is applied.

    Paper: Luo et al. 2018, "Differentiable Learning-to-Normalize via Switchable Normalization".

    >>> norm = jn.SwitchableNorm()
    >>> params, state = norm.init(1)
    >>> x = jnp.array([[[1.0], [3.0]], [[5.0], [7.0]]])  # two examples, two positions, one channel
    >>> y, _ = norm.apply(params, state, x, train=True)
    >>> print(y.squeeze().round(2))  # means (2, 2, 4) and (6, 6, 4), variances (1, 1, 5): μ and σ² are averages
    [[-1.09  0.22]
     [-0.22  1.09]]
    """

    _tracking = _functional.switchable_norm
    _params = SwitchableAffine
    _ones = ("scale", "mean_logits", "var_logits")
    _shared = ("mean_logits", "var_logits")

    channel_axis: int = -1
    batch_axis: Axes | None = 0
    momentum: ArrayLike | None = leaf(default=0.99)
    debias: bool = False
    epsilon: ArrayLike = leaf(default=1e-5)
    ddof: int = 0
    axis_name: Names | None = None

    def _initial(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        value = super()._initial(name, (3,) if name in self._shared else shape, dtype)
        return value.real if name in self._shared else value


class BatchRenorm(Norm):
    """Batch renormalization, `jn.batch_renorm` with its parameters and running statistics.

    y = γ (x̂ r + d) + β,    r and d lead from the batch's statistics to running ones, within r_max and d_max

    Leaves: `momentum`, `epsilon`, `r_max`, `d_max`: to schedule, `dataclasses.replace(spec, r_max=…)` in the step. The
    rest is static. params: `Affine` of (channels,); state: `RunningStats`. Raises what `jn.batch_renorm` does, when it
    is applied.

    Paper: Ioffe 2017, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models".

    >>> norm = jn.BatchRenorm(r_max=1.0, d_max=0.0)  # batch norm, to begin with
    >>> y, _ = norm.apply(*norm.init(1), jnp.array([[1.0], [3.0]]), train=True)
    >>> print(y.squeeze().round(3))
    [-1.  1.]
    """

    _tracking = _functional.batch_renorm

    channel_axis: int = -1
    momentum: ArrayLike | None = leaf(default=0.99)
    debias: bool = False
    epsilon: ArrayLike = leaf(default=1e-5)
    r_max: ArrayLike = leaf(default=3.0)
    d_max: ArrayLike = leaf(default=5.0)
    ddof: int = 0
    axis_name: Names | None = None
