"""What a norm learns and what it keeps."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Inexact, Int


class Affine(NamedTuple):
    """The learned map after standardizing; None leaves its part out.

    y = scale · x̂ + bias

    Each has the shape of the normalized axes: (channels,) for batch, instance and group norm. Raises nothing: `apply`
    says what does not fit.

    >>> jn.LayerNorm(use_bias=False).init(2)[0]
    Affine(scale=Array([1., 1.], dtype=float32), bias=None)
    """

    scale: Inexact[Array, "*features"] | None = None
    bias: Inexact[Array, "*features"] | None = None


class GatedAffine(NamedTuple):
    """What `jn.BatchInstanceNorm` learns: an affine map, and the share ρ of batch norm in what it maps.

    y = scale · (gate · x̂_B + (1 − gate) · x̂_I) + bias

    Each has shape (channels,); the gate is real, from 0 to 1. None leaves a scale or a bias out. Raises nothing:
    `apply` says what does not fit.

    Paper: Nam & Kim 2018, "Batch-Instance Normalization for Adaptively Style-Invariant Neural Networks".

    >>> jn.BatchInstanceNorm().init(2)[0].gate
    Array([1., 1.], dtype=float32)
    """

    gate: Float[Array, " channels"]
    scale: Inexact[Array, " channels"] | None = None
    bias: Inexact[Array, " channels"] | None = None


class RunningStats(NamedTuple):
    """Exponential averages of the batch mean and variance, and how many updates were made.

    mean ← m · mean + (1 − m) · μ,    var ← m · var + (1 − m) · σ²

    This is not a merge of moments: old batches are forgotten, at the rate of the momentum m. `mean` and `var` have
    shape (channels,); `var` is real; `count` is a scalar int32. Raises nothing: `apply` says what does not fit.

    Paper: Ioffe & Szegedy 2015, "Batch Normalization", section 3.1.

    >>> params, state = jn.BatchNorm().init(2)
    >>> print(*state)
    [0. 0.] [1. 1.] 0
    """

    mean: Inexact[Array, " channels"]
    var: Float[Array, " channels"]
    count: Int[Array, ""] | None  # pyright: ignore[reportIncompatibleMethodOverride]


class Accumulating(NamedTuple):
    """Running statistics while the batches that come are parts of one, as `jn.accumulate` and `jn.recalibrate` make it.

    mean, var, count ← one update of `before` by all data `seen`

    `mean`, `var` and `count` are those of `RunningStats`, with what was seen so far. `before` are the `RunningStats` to
    update, or None where the data seen are to replace them; `seen` are the moments of these data, `FeatureStats` of the
    shape of `mean`. Raises nothing.

    >>> params, state = jn.BatchNorm().init(2)
    >>> jn.accumulate(state).before.mean
    Array([0., 0.], dtype=float32)
    """

    mean: Inexact[Array, " channels"]
    var: Float[Array, " channels"]
    count: Int[Array, ""] | None  # pyright: ignore[reportIncompatibleMethodOverride]
    before: RunningStats | None
    seen: Any


def committed(state):
    """The running statistics alone."""
    return RunningStats(state.mean, state.var, state.count)


def recalibrating(state):
    """Whether data are to replace this state: statistics are the batch's then, in evaluation, too."""
    return isinstance(state, Accumulating) and state.before is None


def fields(tree):
    """The fields of what a norm learns or keeps, by name; none of None."""
    return {} if tree is None else tree._asdict()
