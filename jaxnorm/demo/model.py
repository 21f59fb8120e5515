"""A small convolutional network in which the norm is an argument."""

from itertools import accumulate
from operator import mul

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

import jaxnorm as jn

_WIDTHS_AND_STRIDES = ((16, 1), (32, 2), (64, 2))

VALUES_PER_IMAGE = tuple((8 // stride) ** 2 for stride in accumulate((s for _, s in _WIDTHS_AND_STRIDES), mul))
"""How many values of a channel an image of 8 × 8 pixels has, in each block."""


class Classifier(nn.Module):
    """Three blocks of 3 × 3 convolution, norm and ReLU, and a linear read-out of ten digits.

    Attributes:
        norm: the norm of all blocks.
    """

    norm: jn.Spec

    @nn.compact
    def __call__(self, images: Float[Array, "n height width 1"], *, train: bool) -> Float[Array, "n 10"]:
        """The logits."""
        x = images
        for width, stride in _WIDTHS_AND_STRIDES:
            # The norm brings the bias.
            x = _dense(width, use_bias=False)(_patches(x, stride))
            x = nn.relu(jn.linen.Norm(self.norm)(x, train=train))
        return _dense(10)(x.reshape(len(x), -1))


def _dense(features: int, *, use_bias: bool = True) -> nn.Dense:
    # Sampling uniforms compiles several times faster than sampling the truncated normals of the default.
    return nn.Dense(features, use_bias=use_bias, kernel_init=nn.initializers.he_uniform())


def _patches(x: Float[Array, "n height width channels"], stride: int) -> Float[Array, "n h w patch"]:
    """The 3 × 3 neighbourhoods, so that a convolution is a matrix product.

    A convolution whose weights are vmapped becomes a grouped convolution, several times slower on a CPU.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifts, axis=-1)
