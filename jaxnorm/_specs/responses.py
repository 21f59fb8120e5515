"""The norms of responses: no mean is taken off, and none of a batch is needed."""

from jaxtyping import ArrayLike

from jaxnorm import _functional
from jaxnorm._annotations import Axes, Names
from jaxnorm._specs.base import Norm
from jaxnorm._specs.fields import leaf
from jaxnorm._types import ThresholdedAffine


class FilterResponseNorm(Norm):
    """Filter response normalization, `jn.filter_response_norm` with its parameters: the unit after it is a part.

    y = max(γ x / √(⟨x²⟩ + ε) + β, τ),    mean per example and channel

    Leaf: `epsilon`. The rest is static; `use_threshold=False` leaves the unit out. params: `ThresholdedAffine` of
    (channels,); state: None. Raises what `jn.filter_response_norm` does, when it is applied.

    Paper: Singh & Krishnan 2020, "Filter Response Normalization Layer: Eliminating Batch Dependence in the Training of
    Deep Neural Networks".

    >>> norm = jn.FilterResponseNorm()
    >>> y, _ = norm.apply(*norm.init(1), jnp.array([[[3.0], [-3.0]]]), train=True)
    >>> print(y.squeeze().round(3))
    [1. 0.]
    """

    _verb = _functional.filter_response_norm
    _params = ThresholdedAffine

    use_threshold: bool = True
    channel_axis: int = -1
    batch_axis: Axes | None = 0
    epsilon: ArrayLike = leaf(default=1e-6)
    axis_name: Names | None = None


class GlobalResponseNorm(Norm):
    """Global response normalization, `jn.global_response_norm` with its parameters, which begin as y = x.

    y = γ x G / (⟨G⟩ + ε) + β + x,    G = √(Σ |x|²) per example and channel

    Leaf: `epsilon`. The rest is static. params: `Affine` of (channels,), with γ = 0 − `scale_offset`; state: None.
    Raises what `jn.global_response_norm` does, when it is applied.

    Paper: Woo et al. 2023, "ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders".

    >>> norm = jn.GlobalResponseNorm()
    >>> y, _ = norm.apply(*norm.init(2), jnp.array([[[3.0, 1.0], [4.0, 0.0]]]), train=True)
    >>> print(y)
    [[[3. 1.]
      [4. 0.]]]
    """

    _verb = _functional.global_response_norm
    _ones = ()

    channel_axis: int = -1
    batch_axis: Axes | None = 0
    epsilon: ArrayLike = leaf(default=1e-6)
    axis_name: Names | None = None


class LocalResponseNorm(Norm):
    """Local response normalization, `jn.local_response_norm`; ordinarily it learns nothing.

    y = x / (k + α/n Σ |x|²)^β,    the sum over the n = `size` nearest channels

    Leaves: `alpha`, `beta`, `k`. The rest is static. params: `Affine` of (channels,), of None by default; state: None.
    Raises what `jn.local_response_norm` does, when it is applied.

    Paper: Krizhevsky, Sutskever & Hinton 2012, "ImageNet Classification with Deep Convolutional Neural Networks".

    >>> norm = jn.LocalResponseNorm(size=3, alpha=3.0, beta=1.0, k=2.0)
    >>> y, _ = norm.apply(*norm.init(3), jnp.ones((1, 3)), train=True)
    >>> print(y.round(3))
    [[0.25 0.2  0.25]]
    """

    _verb = _functional.local_response_norm

    use_scale: bool = False
    use_bias: bool = False
    size: int
    alpha: ArrayLike = leaf(default=1e-4)
    beta: ArrayLike = leaf(default=0.75)
    k: ArrayLike = leaf(default=1.0)
    channel_axis: int = -1
