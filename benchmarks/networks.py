"""Networks as their papers have them, in flax.linen and in flax.nnx, with norms to be chosen."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx


class LinenBlock(nn.Module):
    norm: Callable[[], nn.Module]
    features: int
    stride: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        conv = partial(nn.Conv, self.features, use_bias=False, dtype=self.dtype)
        y = nn.relu(self.norm()(conv((3, 3), self.stride)(x)))
        y = self.norm()(conv((3, 3))(y))
        if y.shape != x.shape:
            x = self.norm()(conv((1, 1), self.stride)(x))
        return nn.relu(x + y)


class LinenResNet18(nn.Module):
    """He et al. 2016, "Deep Residual Learning for Image Recognition", in the form for CIFAR, with its input normed."""

    norm: Callable[[], nn.Module]
    width: int = 64
    classes: int = 10
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3), use_bias=False, dtype=self.dtype)(self.norm()(x))
        x = nn.relu(self.norm()(x))
        for stage in range(4):
            for stride in (2 if stage else 1, 1):
                x = LinenBlock(self.norm, self.width << stage, stride, self.dtype)(x)
        return nn.Dense(self.classes)(x.mean((1, 2)))


class NNXBlock(nnx.Module):
    def __init__(self, norm: Callable[..., Any], inputs: int, features: int, stride: int, *, rngs: nnx.Rngs):
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.first, self.norm1 = conv(inputs, features, (3, 3), stride), norm(features, rngs=rngs)
        self.second, self.norm2 = conv(features, features, (3, 3)), norm(features, rngs=rngs)
        self.short = nnx.data(None)
        if inputs != features or stride > 1:
            self.short = nnx.Sequential(conv(inputs, features, (1, 1), stride), norm(features, rngs=rngs))

    def __call__(self, x):
        y = nnx.relu(self.norm1(self.first(x)))
        y = self.norm2(self.second(y))
        return nnx.relu(y + (x if self.short is None else self.short(x)))


class NNXResNet18(nnx.Module):
    """The same."""

    def __init__(self, norm: Callable[..., Any], width: int = 64, classes: int = 10, *, rngs: nnx.Rngs):
        self.input, self.norm = norm(3, rngs=rngs), norm(width, rngs=rngs)
        self.stem = nnx.Conv(3, width, (3, 3), use_bias=False, rngs=rngs)
        blocks, inputs = [], width
        for stage in range(4):
            for stride in (2 if stage else 1, 1):
                blocks.append(NNXBlock(norm, inputs, width << stage, stride, rngs=rngs))
                inputs = width << stage
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(inputs, classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(self.input(x))))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class LinenTransformer(nn.Module):
    """A block with norms before and after attention and feed-forward (Ding et al. 2021, "CogView").

    All but the residual stream is in bfloat16, and it is what the norms before read.
    """

    before: Callable[[], nn.Module]
    after: Callable[[], nn.Module]

    @nn.compact
    def __call__(self, x):
        dense = partial(nn.Dense, dtype=jnp.bfloat16)
        y = self.before()(x)
        x = x + self.after()(nn.MultiHeadDotProductAttention(4, dtype=jnp.bfloat16)(y, y)).astype(x.dtype)
        y = nn.gelu(dense(4 * x.shape[-1])(self.before()(x)))
        return x + self.after()(dense(x.shape[-1])(y)).astype(x.dtype)


class NNXTransformer(nnx.Module):
    """The same."""

    def __init__(self, before: Callable[..., Any], after: Callable[..., Any], features: int, *, rngs: nnx.Rngs):
        dense = partial(nnx.Linear, dtype=jnp.bfloat16, rngs=rngs)
        self.before = nnx.List([before(features, rngs=rngs) for _ in range(2)])
        self.after = nnx.List([after(features, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, features, dtype=jnp.bfloat16, decode=False, rngs=rngs)
        self.up, self.down = dense(features, 4 * features), dense(4 * features, features)

    def __call__(self, x):
        x = x + self.after[0](self.attention(self.before[0](x))).astype(x.dtype)
        return x + self.after[1](self.down(nnx.gelu(self.up(self.before[1](x))))).astype(x.dtype)
