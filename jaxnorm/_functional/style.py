"""Instance norm by another image's statistics."""

from jaxtyping import ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Axes, Data, Implementation, Result
from jaxnorm._core.maps import root
from jaxnorm._core.numerics import nan_if_infinite
from jaxnorm._core.reduction import Reduction
from jaxnorm._functional.normalize import normalize
from jaxnorm._functional.stateless import per_example
from jaxnorm._state.moments import moments


@_checks.in_other_words
def adaptive_instance_norm(
    content: Data,
    style: Data,
    *,
    channel_axis: int = -1,
    batch_axis: Axes | None = 0,
    epsilon: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    style_where: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
    implementation: Implementation = None,
) -> Result:
    """Adaptive instance normalization: the content, with the mean and deviation that the style has in each channel.

    y = √(σ_s² + ε) (x − μ) / √(σ² + ε) + μ_s,    μ and σ² of the content, μ_s and σ_s² of the style, per example and
    channel

    It is `jn.moments` of the style, and `jn.instance_norm` with scale and bias. Whatever adapts a norm passes these
    two: FiLM and conditional norms one of each per example, SPADE one per position. Of itself as the style, it is the
    content.

    Args:
        content: x, floating point, any layout.
        style: floating point, of the dimensions of the content. Along axes of examples its size is that of the content
            or 1, one style for all; of positions it may have more or fewer.
        channel_axis, batch_axis, where, dtype, implementation: as for `jn.instance_norm`.
        epsilon: ε, a number of at least 0.
        style_where: booleans or weights with the dimensions of the style: what counts in its statistics.

    Returns:
        y, with the shape of the content. Arithmetic is in float32 at least. Gradients flow into both.

    Raises:
        TypeError: the content or the style is integer or boolean. ValueError: they do not fit each other.

    Paper: Huang & Belongie 2017, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization".

    >>> content = jnp.array([[[1.0], [3.0]]])  # one example, two positions, one channel
    >>> style = jnp.array([[[10.0], [20.0], [10.0], [20.0]]])
    >>> print(jn.adaptive_instance_norm(content, style).squeeze().round(2))
    [10. 20.]
    """
    who = "adaptive_instance_norm"
    content, style = _checks.data(content, who, "content"), _checks.data(style, who, "style")
    channel, positions = per_example(content, channel_axis, batch_axis, who)
    _checks.same_style(style, content, positions, who)
    of_style = moments(style, positions, where=_checks.where(style_where, style, who, "style_where"), keepdims=True)
    epsilon = _checks.number(epsilon, content, who, "epsilon")
    scale = root(nan_if_infinite(of_style.var + epsilon.astype(of_style.var.dtype)))
    _checks.positions(positions, content, who)
    _checks.without_kernels(implementation, who)
    return normalize(
        content, Reduction(positions), (channel,), scale, of_style.mean, epsilon=epsilon, where=where, who=who,
        dtype=dtype,
    )  # fmt: skip
