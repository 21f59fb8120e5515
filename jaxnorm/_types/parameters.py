"""What norms learn."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Inexact


class Affine(NamedTuple):
    """The learned map after standardizing; None leaves its part out.

    y = scale · x̂ + bias

    Each has the shape of the normalized axes: (channels,) for batch, instance and group norm.

    >>> jn.LayerNorm(use_bias=False).init(2)[0]
    Affine(scale=Array([1., 1.], dtype=float32), bias=None)
    """

    scale: Inexact[Array, "*features"] | None = None
    bias: Inexact[Array, "*features"] | None = None


class GatedAffine(NamedTuple):
    """The parameters of `jn.BatchInstanceNorm`: an affine map, and the share ρ of batch norm in what it maps.

    y = scale · (gate · x̂_B + (1 − gate) · x̂_I) + bias

    Each has shape (channels,); the gate is real, from 0 to 1. None leaves a scale or a bias out.

    Paper: Nam & Kim 2018, "Batch-Instance Normalization for Adaptively Style-Invariant Neural Networks".

    >>> jn.BatchInstanceNorm().init(2)[0].gate
    Array([1., 1.], dtype=float32)
    """

    gate: Float[Array, " channels"]
    scale: Inexact[Array, " channels"] | None = None
    bias: Inexact[Array, " channels"] | None = None


class ThresholdedAffine(NamedTuple):
    """The parameters of `jn.FilterResponseNorm`: an affine map, and the threshold τ of what it gives.

    y = max(scale · x̂ + bias, threshold)

    Each has shape (channels,). None leaves its part out.

    Paper: Singh & Krishnan 2020, "Filter Response Normalization Layer".

    >>> jn.FilterResponseNorm().init(2)[0].threshold
    Array([0., 0.], dtype=float32)
    """

    scale: Inexact[Array, " channels"] | None = None
    bias: Inexact[Array, " channels"] | None = None
    threshold: Float[Array, " channels"] | None = None


class TanhAffine(NamedTuple):
    """The parameters of `jn.DynamicTanh`: an affine map, and the slope α within the tanh.

    y = scale · tanh(alpha · x) + bias

    `scale` and `bias` have the shape of the axes that they lie along, `alpha` is a scalar.

    Paper: Zhu et al. 2025, "Transformers without Normalization".

    >>> jn.DynamicTanh().init(2)[0].alpha
    Array(0.5, dtype=float32)
    """

    scale: Float[Array, "*features"] | None = None
    bias: Float[Array, "*features"] | None = None
    alpha: Float[Array, ""] | None = None


class EvoAffine(NamedTuple):
    """The parameters of `jn.EvoNormS0` and `jn.EvoNormB0`: an affine map, and the v of their formulas.

    y = scale · f(x, v) + bias

    Each has shape (channels,). None leaves a scale or a bias out.

    Paper: Liu et al. 2020, "Evolving Normalization-Activation Layers".

    >>> jn.EvoNormS0(groups=1).init(2)[0].v
    Array([1., 1.], dtype=float32)
    """

    scale: Float[Array, " channels"] | None = None
    bias: Float[Array, " channels"] | None = None
    v: Float[Array, " channels"] | None = None


class SwitchableAffine(NamedTuple):
    """The parameters of `jn.SwitchableNorm`: an affine map, and the logits of instance, layer and batch norm.

    y = scale · (x − Σ softmax(mean_logits) · μ) / √(Σ softmax(var_logits) · σ² + ε) + bias

    `scale` and `bias` have shape (channels,), the logits (3,). None leaves a scale or a bias out.

    Paper: Luo et al. 2018, "Differentiable Learning-to-Normalize via Switchable Normalization".

    >>> jn.SwitchableNorm().init(2)[0].mean_logits
    Array([1., 1., 1.], dtype=float32)
    """

    scale: Inexact[Array, " channels"] | None = None
    bias: Inexact[Array, " channels"] | None = None
    mean_logits: Float[Array, " 3"] | None = None
    var_logits: Float[Array, " 3"] | None = None


def fields(tree: Any) -> dict[str, Any]:
    """The fields of what a norm learns or keeps, by name; none of None."""
    if tree is None:
        return {}
    return dict(tree) if isinstance(tree, Mapping) else tree._asdict()


def with_given(params: Any, **values: Any) -> Any:
    """Parameters with a scale or bias that comes in the call."""
    given = {name: value for name, value in values.items() if value is not None}
    return params._replace(**given) if given else params
