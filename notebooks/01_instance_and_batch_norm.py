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
# # Instance norm and batch norm
#
# What they compute, what they are good for, and when to take which. Everything that is claimed here is computed here.
#
# 1. [Why inputs are scaled](#1-why-inputs-are-scaled)
# 2. [Who shares statistics](#2-who-shares-statistics)
# 3. [The two formulas](#3-the-two-formulas), step by step
# 4. [γ and β](#4-γ-and-β-a-norm-can-do-nothing): a norm can do nothing
# 5. [Why batch norm keeps running statistics](#5-why-batch-norm-keeps-running-statistics)
# 6. [What a small batch does to batch norm](#6-what-a-small-batch-does-to-batch-norm)
# 7. [What instance norm removes](#7-what-instance-norm-removes): contrast
# 8. [Larger steps, faster](#8-larger-steps-faster)

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits, load_sample_images, load_wine

import jaxnorm as jn

BLUE, RED, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#777777"
plt.rcParams.update({
    "figure.dpi": 110, "figure.constrained_layout.use": True, "font.size": 9, "axes.titlesize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
})  # fmt: skip

# %% [markdown]
# ## 1. Why inputs are scaled
#
# A car may be described by its age in years, some tens, and by the distance that it was driven in kilometres, some
# tens of thousands. To a network both are numbers, and the large one drowns the small one. Our example has 13 such
# features: chemical analyses of 178 wines from three growers.

# %%
wine = load_wine()
features, grower = jnp.asarray(wine.data, jnp.float32), jnp.asarray(wine.target)
for name in ("hue", "proline"):
    column = features[:, wine.feature_names.index(name)]
    print(f"{name:>8}: from {column.min():6.2f} to {column.max():7.2f}, mean {column.mean():6.2f}")

scaler = jn.FeatureScaler()
_, seen = scaler.init(13)
scaled, seen = scaler.apply(None, seen, features, train=True)
print(f"scaled: means {abs(scaled.mean(0)).max():.1e} or less, deviations 1 ± {abs(scaled.std(0) - 1).max():.1e}")

# %% [markdown]
# The state `seen` holds exact moments of all data so far. It could as well have been a stream of batches of any
# sizes: the result is the same. And `inverse` goes back.

# %%
_, stream = scaler.init(13)
for rows in jnp.split(features, [10, 11, 100]):
    _, stream = scaler.apply(None, stream, rows, train=True)
by_stream, _ = scaler.apply(None, stream, features, train=False)
np.testing.assert_allclose(by_stream, scaled, atol=1e-5)
np.testing.assert_allclose(scaler.inverse(stream, by_stream), features, rtol=1e-5)

# %% [markdown]
# A network with one hidden layer learns to tell the growers apart, once from the raw features and once from scaled
# ones, each at 13 learning rates, all of them in one `vmap`.

# %%
RATES = 10.0 ** jnp.linspace(-5, 1, 13)


def network(key, widths=(13, 16, 3)):
    """Two layers of weights and biases."""
    keys = jax.random.split(key, len(widths) - 1)
    pairs = zip(keys, widths[:-1], widths[1:], strict=True)
    return [(jax.random.normal(k, (m, n)) * np.sqrt(2 / m), jnp.zeros(n)) for k, m, n in pairs]


def wine_loss(params, x):
    (w1, b1), (w2, b2) = params
    logits = jax.nn.relu(x @ w1 + b1) @ w2 + b2
    return optax.softmax_cross_entropy_with_integer_labels(logits, grower).mean()


@jax.jit
def descend(x, rate):
    """The losses of gradient descent."""

    def step(params, _):
        loss, grads = jax.value_and_grad(wine_loss)(params, x)
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), loss

    return jax.lax.scan(step, network(jax.random.key(0)), length=200)[1]


curves = {name: jax.vmap(partial(descend, x))(RATES) for name, x in (("raw", features), ("scaled", scaled))}
best = {name: int(jnp.nanargmin(losses[:, -20:].mean(1))) for name, losses in curves.items()}
for name, losses in curves.items():
    print(f"{name:>6}: loss {losses[best[name], -1]:.3f} after 200 steps, at its best rate {RATES[best[name]]:.0e}")
assert curves["scaled"][best["scaled"], -1] < 0.1 * curves["raw"][best["raw"], -1]

# %% [markdown]
# One reason can be drawn: the shape of the loss. We look at it for two features, hue and proline, and a linear
# classifier of the first grower: all weights $(w_1, w_2)$, with the best bias. The condition number of its Hessian
# says how much steeper its steepest direction is than its flattest: the larger, the more steps gradient descent
# needs.

# %%
two = features[:, [wine.feature_names.index("hue"), wine.feature_names.index("proline")]]
first = (grower == 0).astype(jnp.float32)


def plane_loss(w, x):
    """Squared error of w·x + b, with the best b: that of centered data."""
    return jnp.mean(((x - x.mean(0)) @ w - (first - first.mean())) ** 2)


@jax.jit
def path(x, offset):
    """Forty steps of gradient descent, nearly as large as the steepest direction allows; the goal, the curvatures."""
    slope, hessian = jax.grad(plane_loss), jax.hessian(plane_loss)(jnp.zeros(2), x)
    goal, curvature = jnp.linalg.solve(hessian, -slope(jnp.zeros(2), x)), jnp.linalg.eigvalsh(hessian)

    def step(w, _):
        return w - 1.8 / curvature[-1] * slope(w, x), w

    return jax.lax.scan(step, goal + offset, length=40)[1], goal, curvature


@jax.jit
def surface(x, w1, w2):
    return jax.vmap(lambda b: jax.vmap(lambda a: plane_loss(jnp.stack([a, b]), x))(w1))(w2)


figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), width_ratios=(1.2, 1, 1))
for name, colour in (("raw", RED), ("scaled", BLUE)):
    axes[0].semilogy(curves[name][best[name]], color=colour, label=f"{name}, rate {RATES[best[name]]:.0e}")
axes[0].set(title="Loss on all 13 features, each at its best rate", xlabel="step", ylabel="cross entropy")
axes[0].legend()
both, _ = scaler.apply(None, scaler.init(2)[1], two, train=True)
for ax, name, x, offset, colour, label in (
    (axes[1], "raw", two, (-0.6, 0.001), RED, "40 steps, all of them here"),
    (axes[2], "scaled", both, (-0.6, 0.5), BLUE, "40 steps"),
):
    steps, goal, curvature = path(x, jnp.array(offset))
    w1, w2 = (goal[i] + jnp.linspace(-0.9, 0.9, 121) for i in (0, 1))
    heights = surface(x, w1, w2)
    bottom = plane_loss(goal, x)
    levels = bottom + jnp.geomspace(1e-3, 1, 12) * (heights.max() - bottom)
    ax.contour(w1, w2, heights, levels=np.asarray(levels), colors=[GREY], linewidths=0.6)
    ax.plot(*steps.T, ".-", color=colour, markersize=5, linewidth=1, label=label)
    ax.plot(*goal, "*", color="black", markersize=9, label="the best weights", linestyle="none")
    left = jnp.linalg.norm(steps[-1] - goal) / jnp.linalg.norm(steps[0] - goal)
    condition = curvature[-1] / curvature[0]
    print(f"{name:>6}: condition number {condition:,.1f}; of the way, {left:.1%} is left after 40 steps")
    ax.set(title=f"{name}: condition number {condition:,.0f}", xlabel="weight of hue", ylabel="weight of proline")
    ax.legend(loc="lower left")
    assert left > 0.99 if name == "raw" else left < 0.01
plt.show()

# %% [markdown]
# Raw, the surface is a valley, two million times as steep across it as along it. A step that is short enough for the
# steep direction is far too short for the other one. Scaled, it is a bowl.
#
# The inner layers of a network have inputs, too, and their scale changes whenever the weights before them do. A norm
# keeps it the same.

# %% [markdown]
# ## 2. Who shares statistics
#
# Activations of images have four dimensions: N examples, H × W positions, C channels. All norms subtract a mean and
# divide by a deviation, and differ in whose. This is no sketch: a cube is coloured if the output at the front corner
# depends on it, by the derivative.

# %%
SHAPE = N, H, W, C = 4, 2, 2, 6
SPECS = {
    "batch norm": jn.BatchNorm(),
    "instance norm": jn.InstanceNorm(),
    "layer norm": jn.LayerNorm(axis=(1, 2, 3)),
    "group norm, 2 groups": jn.GroupNorm(groups=2),
    "RMS norm": jn.RMSNorm(),
}


def sharing(spec, at=(0, 0, 0, 0)):
    """Where y[at] depends on x: booleans in the shape of x."""
    params, state = spec.init(spec.features(SHAPE))
    one = jax.jit(jax.grad(lambda x: spec.apply(params, state, x, train=True)[0][at]))
    return np.asarray(jnp.abs(one(jax.random.normal(jax.random.key(1), SHAPE))) > 1e-6)


figure, axes = plt.subplots(1, 5, figsize=(13, 2.3), subplot_kw={"projection": "3d"}, layout="none")
figure.subplots_adjust(left=0.03, right=0.99, bottom=0, top=0.96, wspace=0.1)
for ax, (name, spec), colour in zip(axes, SPECS.items(), (BLUE, RED, GREEN, PURPLE, "#E69F00"), strict=True):
    shared = sharing(spec)
    cubes = shared.reshape(N, H * W, C).transpose(2, 0, 1)[:, :, ::-1]
    # One after the other: between cubes that are drawn together, faces are left out.
    ax.voxels(cubes, facecolors=colour, edgecolors="white", linewidth=0.8)
    ax.voxels(~cubes, facecolors="#CCCCCC18", edgecolors="#99999940", linewidth=0.5, shade=False)
    for x, y, label in ((0.43, 0.1, "C"), (0.82, 0.13, "N"), (0.09, 0.45, "H × W")):
        ax.text2D(x, y, label, transform=ax.transAxes, ha="right")
    ax.set_title(f"{name}: {shared.sum()} of {shared.size}", y=0.92)
    ax.set_axis_off()
    ax.set_aspect("equal")
    ax.view_init(elev=22, azim=-58)
plt.show()

sizes = [sharing(spec).sum() for spec in SPECS.values()]
assert sizes == [N * H * W, H * W, H * W * C, H * W * C // 2, C]

# %% [markdown]
# Instance norm: each example and channel alone, over H and W. Batch norm: each channel, over the examples, too. RMS
# norm, that of transformers: each position alone, over the channels, and without a mean. So batch norm alone lets
# examples see each other, and all that is special about it follows from that.

# %% [markdown]
# ## 3. The two formulas
#
# Instance norm of $x_{nchw}$, the same in training and at test time:
#
# $$\mu_{nc} = \frac{1}{HW}\sum_{hw} x_{nchw} \qquad \sigma^2_{nc} = \frac{1}{HW}\sum_{hw} (x_{nchw}-\mu_{nc})^2 \qquad
# y_{nchw} = \gamma_c\,\frac{x_{nchw}-\mu_{nc}}{\sqrt{\sigma^2_{nc}+\varepsilon}} + \beta_c$$
#
# Batch norm takes the sums over $n$ as well, so that $\mu_c$ and $\sigma^2_c$ lose that index. In training it also
# moves averages of both, and at test time these take their place:
#
# $$\bar\mu_c \leftarrow m\,\bar\mu_c + (1-m)\,\mu_c \qquad
# \bar\sigma^2_c \leftarrow m\,\bar\sigma^2_c + (1-m)\,\sigma^2_c$$

# %%
x = 3 + 2 * jax.random.normal(jax.random.key(2), (8, 4, 5, 5))  # n, c, h, w
gamma, beta = jnp.array([1.0, 2.0, 0.5, 3.0]), jnp.array([0.0, -1.0, 1.0, 5.0])
epsilon, momentum = 1e-5, 0.9
per_channel = lambda v: v[:, None, None]

mu = x.mean((2, 3), keepdims=True)  # by hand
var = ((x - mu) ** 2).mean((2, 3), keepdims=True)
by_hand = per_channel(gamma) * (x - mu) / jnp.sqrt(var + epsilon) + per_channel(beta)
by_library = jn.instance_norm(x, gamma, beta, channel_axis=1, epsilon=epsilon)
print(f"instance norm: {abs(by_hand - by_library).max():.0e} apart at most")
np.testing.assert_allclose(by_hand, by_library, atol=2e-5)

mu = x.mean((0, 2, 3), keepdims=True)
var = ((x - mu) ** 2).mean((0, 2, 3), keepdims=True)
by_hand = per_channel(gamma) * (x - mu) / jnp.sqrt(var + epsilon) + per_channel(beta)
bn = jn.BatchNorm(channel_axis=1, momentum=momentum, epsilon=epsilon)
_, state = bn.init(4)
by_library, after = bn.apply(jn.Affine(gamma, beta), state, x, train=True)
print(f"batch norm: {abs(by_hand - by_library).max():.0e} apart at most")
np.testing.assert_allclose(by_hand, by_library, atol=2e-5)

running_mean = momentum * state.mean + (1 - momentum) * mu.squeeze()
running_var = momentum * state.var + (1 - momentum) * var.squeeze()
np.testing.assert_allclose(after.mean, running_mean, rtol=1e-5)
np.testing.assert_allclose(after.var, running_var, rtol=1e-5)
at_test = per_channel(gamma) * (x - per_channel(running_mean)) / jnp.sqrt(per_channel(running_var) + epsilon)
y, _ = bn.apply(jn.Affine(gamma, beta), after, x, train=False)
print(f"batch norm at test time: {abs(at_test + per_channel(beta) - y).max():.0e} apart at most")
np.testing.assert_allclose(at_test + per_channel(beta), y, atol=2e-5)

# %% [markdown]
# ## 4. γ and β: a norm can do nothing
#
# With $\gamma = \sqrt{\sigma^2+\varepsilon}$ and $\beta = \mu$ the output is the input, for data with this $\mu$ and
# $\sigma^2$. Batch norm at test time has the same for all data. So a trained network with batch norm can be any
# network without it: the norm changes where training starts and how it moves. Instance norm can't do nothing: each
# example has statistics of its own, and they are gone.

# %%
found = jn.moments(x, axis=(0, 2, 3))
params = jn.Affine(jnp.sqrt(found.var + epsilon), found.mean)
y, _ = bn.apply(params, state, x, train=True)
print(f"batch norm with γ = σ and β = μ: {abs(y - x).max():.0e} from the identity")
np.testing.assert_allclose(y, x, atol=1e-5)

other = 5 * jax.random.normal(jax.random.key(3), x.shape) - 1
params = jn.Affine(jnp.sqrt(after.var + epsilon), after.mean)
y, _ = bn.apply(params, after, other, train=False)
print(f"at test time, for other data: {abs(y - other).max():.0e}")
np.testing.assert_allclose(y, other, atol=1e-4)
y = jn.instance_norm(other, *params, channel_axis=1)
print(f"instance norm: {abs(y - other).max():.0f}")
assert abs(y - other).max() > 1

# %% [markdown]
# ## 5. Why batch norm keeps running statistics
#
# A dense network for 8 × 8 pictures of digits: two hidden layers of 64, each with a norm and ReLU.

# %%
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = jnp.asarray(digits.images[order, :, :, None] / 16, jnp.float32)
labels = jnp.asarray(digits.target[order])
TRAIN, TEST = slice(0, 1280), slice(1280, 1792)


def dense(spec, params, states, x, train, where=None):
    (w1, w2, w3), a, b = params
    where = None if where is None else where[:, None]
    x, state_a = spec.apply(a, states[0], x.reshape(len(x), -1) @ w1, train=train, where=where)
    x, state_b = spec.apply(b, states[1], jax.nn.relu(x) @ w2, train=train, where=where)
    return jax.nn.relu(x) @ w3, (state_a, state_b)


def start(spec, shapes, key):
    """Weights, and parameters and states of two norms."""
    keys = jax.random.split(key, 3)
    weights = [jax.random.normal(k, s) * np.sqrt(2 / s[0]) for k, s in zip(keys, shapes, strict=True)]
    (a, state_a), (b, state_b) = (spec.init(shape[1]) for shape in shapes[:2])
    return (weights, a, b), (state_a, state_b)


SHAPES = {dense: ((64, 64), (64, 64), (64, 10))}


def train(network, spec, seed, rate, steps, batch, size=None):
    """A trained network, and its losses. Of each batch, the first `size` examples count, or all."""
    optimizer = optax.sgd(rate, momentum=0.9)
    params, states = start(spec, SHAPES[network], jax.random.key(seed))
    where = None if size is None else jnp.arange(batch) < size

    def step(carry, key):
        params, states, moving = carry
        rows = jax.random.randint(key, (batch,), 0, TRAIN.stop)

        def loss(params):
            logits, new = network(spec, params, states, images[rows], True, where)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean(where=where), new

        (value, states), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moving = optimizer.update(grads, moving)
        return (optax.apply_updates(params, updates), states, moving), value

    keys = jax.random.split(jax.random.key(100 + seed), steps)
    (params, states, _), losses = jax.lax.scan(step, (params, states, optimizer.init(params)), keys)
    return params, states, losses


def accuracy(network, spec, params, states, x, y, train=False):
    return (network(spec, params, states, x, train)[0].argmax(-1) == y).mean()


spec = jn.BatchNorm(momentum=0.9)
params, states, _ = jax.jit(partial(train, dense, spec, batch=64, steps=300))(0, 0.1)
test_x, test_y = images[TEST], labels[TEST]
right = accuracy(dense, spec, params, states, test_x, test_y)
print(f"with running statistics: {right:.1%} of {len(test_y)} test digits")

# %% [markdown]
# Without running statistics, a test image would be normalized together with whatever happens to be beside it. So what
# a network says about an image depends on its neighbours. We evaluate the same network with statistics of the batch,
# for batches of several sizes: drawn at random, and sorted by digit, as they may come from a source.

# %%
SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256]


def by_batches(x, y, size):
    cut = lambda v: v.reshape(-1, size, *v.shape[1:])
    return jax.lax.map(lambda xy: accuracy(dense, spec, params, states, *xy, train=True), (cut(x), cut(y))).mean()


by_class = jnp.argsort(test_y)
mixed = [by_batches(test_x, test_y, size) for size in SIZES]
sorted_ = [by_batches(test_x[by_class], test_y[by_class], size) for size in SIZES]


@jax.jit
def beside(image, digit, neighbours):
    """The probability of the right digit, for an image in a batch with others."""
    together = jnp.concatenate([image[None], neighbours])
    return jax.nn.softmax(dense(spec, params, states, together, True)[0][0])[digit]


companies = jnp.stack([jax.random.choice(k, test_x, (7,)) for k in jax.random.split(jax.random.key(5), 100)])
believed = jax.vmap(lambda *one: jax.lax.map(lambda others: beside(*one, others), companies))(test_x[:50], test_y[:50])
one = int(jnp.argmax(believed.max(1) - believed.min(1)))
alone = jax.nn.softmax(dense(spec, params, states, test_x[:50], False)[0])[one, test_y[one]]

figure, (left, right_) = plt.subplots(1, 2, figsize=(9, 3.2))
left.axhline(right, color=BLUE, label="running statistics")
left.plot(SIZES, mixed, "o-", color=RED, label="of the batch, mixed")
left.plot(SIZES, sorted_, "s--", color=PURPLE, label="of the batch, sorted by digit")
left.set(xscale="log", xlabel="batch size at test time", ylabel="accuracy", title="One network, evaluated three ways")
left.set_xticks(SIZES, SIZES)
left.minorticks_off()
left.legend(loc="center", bbox_to_anchor=(0.5, 0.6), fontsize=8)
right_.hist(np.asarray(believed[one]), bins=np.linspace(0, 1, 41), color=RED, label="in batches of 8, by the batch")
right_.axvline(alone, color=BLUE, label="by running statistics")
right_.set(
    title=f"One image (digit {test_y[one]}, an extreme one) in 100 batches", xlabel="probability of the right digit"
)
right_.legend(loc="upper center")
plt.show()
print(f"one at a time by its own statistics: {mixed[0]:.1%}; sorted, in batches of 32: {sorted_[5]:.1%}")
low, high = believed[one].min(), believed[one].max()
print(f"of 50 images, the one that depends most on its neighbours: from {low:.2f} to {high:.2f}")
assert mixed[0] < right - 0.1
assert sorted_[5] < right - 0.1
assert high - low > 0.5

# %% [markdown]
# ## 6. What a small batch does to batch norm
#
# The mean of $n$ independent values is off by $\sigma/\sqrt n$, and their variance, relative to it, by
# $\sqrt{(\kappa-1)/n}$ or so, with $\kappa$ the kurtosis. We draw batches from what the first layer makes of the
# training images, and measure.

# %%
values = images[TRAIN].reshape(-1, 64) @ params[0][0]
true_mean, true_var = values.mean(0), values.var(0)
kurtosis = ((values - true_mean) ** 4).mean(0) / true_var**2


@partial(jax.jit, static_argnums=1)
def errors(key, n, draws=2000):
    """Root mean square errors of the mean, in deviations, and of the variance, relative; averaged over channels."""
    rows = jax.random.randint(key, (draws, n), 0, len(values))
    batch = jn.moments(values[rows], axis=1)
    mean = jnp.sqrt(((batch.mean - true_mean) ** 2).mean(0) / true_var)
    unbiased = batch.m2 / (n - 1)
    return mean.mean(), jnp.sqrt(((unbiased / true_var - 1) ** 2).mean(0)).mean()


ns = np.array([2, 4, 8, 16, 32, 64, 128, 256])
measured = np.array([errors(jax.random.key(n), int(n)) for n in ns])
# The variance of the unbiased variance of n values: σ⁴ ((κ − 1)/n + 2/(n (n − 1))) exactly.
theory_var = np.sqrt((kurtosis[:, None] - 1) / ns + 2 / (ns * (ns - 1))).mean(0)
theory_mean = 1 / np.sqrt(ns)
for n, row, mean, var in zip(ns, measured, theory_mean, theory_var, strict=True):
    print(f"n = {n:3}: error of the mean {row[0]:.3f} (theory {mean:.3f}), of the variance {row[1]:.3f} ({var:.3f})")
np.testing.assert_allclose(measured[:, 0], theory_mean, rtol=0.05)
np.testing.assert_allclose(measured[:, 1], theory_var, rtol=0.1)

# %% [markdown]
# What that costs, we ask of two networks: the dense one, and one of two convolutions of 3 × 3 (written as products
# with patches: many of them under one `vmap` are faster that way), where a channel has a value at each position, too.
# Each with batch norm and with norms that do not look at the batch, 150 steps with batches of 2 to 16, two seeds, at
# the learning rate of three that is best for it on the test data. To have all sizes in one program, all batches are
# of 16, of which the first 2, 4 or 8 count (`where`): the rest might as well not be there.


# %%
def patches(x, stride=1):
    """The neighbourhood of each position, as channels."""
    (h, w), x = x.shape[1:3], jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate([x[:, i : i + h : stride, j : j + w : stride] for i in range(3) for j in range(3)], -1)


def convolutional(spec, params, states, x, train, where=None):
    (w1, w2, w3), a, b = params
    where = None if where is None else where[:, None, None, None]
    x, state_a = spec.apply(a, states[0], patches(x) @ w1, train=train, where=where)
    x, state_b = spec.apply(b, states[1], patches(jax.nn.relu(x), 2) @ w2, train=train, where=where)
    return jax.nn.relu(x).reshape(len(x), -1) @ w3, (state_a, state_b)


SHAPES[convolutional] = ((9, 16), (144, 32), (512, 10))
BATCH = "batch norm", jn.BatchNorm(momentum=0.9), BLUE, "o"
LAYER = "layer norm", jn.LayerNorm(), GREEN, "^"
INSTANCE = "instance norm", jn.InstanceNorm(), RED, "s"
GROUP = "group norm", jn.GroupNorm(groups=4), PURPLE, "D"
NONE = "none", jn.Identity(), GREY, "x"
CHOICES = {dense: (BATCH, LAYER, NONE), convolutional: (BATCH, INSTANCE, GROUP, NONE)}
BATCHES = [2, 4, 8, 16]
SOME_RATES = jnp.array([0.01, 0.03, 0.1])


@partial(jax.jit, static_argnames="network")
def score(network, spec):
    """Accuracy at test time for sizes of batches, at the best rate, averaged over seeds."""

    def one(size, rate, seed):
        params, states, _ = train(network, spec, seed, rate, 150, max(BATCHES), size)
        return accuracy(network, spec, params, states, test_x, test_y)

    over = jax.vmap(jax.vmap(jax.vmap(one, (None, None, 0)), (None, 0, None)), (0, None, None))
    return over(jnp.array(BATCHES), SOME_RATES, jnp.arange(2)).mean(2).max(1)


figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
axes[0].loglog(ns, theory_mean, color=BLUE, label=r"$1/\sqrt{n}$")
axes[0].loglog(ns, measured[:, 0], "o", color=BLUE, label="mean, measured")
axes[0].loglog(ns, theory_var, color=RED, label=r"$\sqrt{(\kappa-1)/n + 2/(n(n-1))}$")
axes[0].loglog(ns, measured[:, 1], "s", color=RED, label="variance, measured")
axes[0].set(title="Error of the statistics of a batch", xlabel="batch size n", ylabel="relative error")
axes[0].set_xticks(ns, ns)
at_best = {}
for ax, (network, choices) in zip(axes[1:], CHOICES.items(), strict=True):
    for name, spec, colour, marker in choices:
        at_best[network, name] = np.asarray(score(network, spec))
        print(f"{network.__name__:>13}, {name:>13}:", *(f"{a:6.1%}" for a in at_best[network, name]), " at", BATCHES)
        ax.plot(BATCHES, at_best[network, name], marker + "-", color=colour, label=name)
    ax.set(title=f"{network.__name__}: accuracy after 150 steps", xlabel="batch size in training", xscale="log")
    ax.set_xticks(BATCHES, BATCHES)
for ax in axes:
    ax.minorticks_off()
    ax.legend()
plt.show()
dense_ = {name: at_best[dense, name] for name in ("batch norm", "layer norm", "none")}
assert dense_["batch norm"][0] < min(dense_["layer norm"][0], dense_["none"][0]) - 0.1
assert (dense_["batch norm"] > np.maximum(dense_["layer norm"], dense_["none"]))[1:].all()
assert np.abs(at_best[convolutional, "batch norm"] - at_best[convolutional, "instance norm"]).max() < 0.02

# %% [markdown]
# In the dense network a batch of two makes nearly every value +1 or −1, and batch norm is worse than none; from four
# on it is the best. In the convolutional one, two examples have 2 × 64 values of a channel in the first layer, and
# batch norm is as good as instance norm, within two points, at every size. Instance norm asks for no more than one
# example, also at test time, and has no state to keep.

# %% [markdown]
# ## 7. What instance norm removes
#
# A picture with a third of the contrast, or brighter, is the same picture to instance norm, as far as its variance is
# large beside ε: scale and shift of an example's channel go with its statistics. That is why it came up in style
# transfer, where the contrast of the content is not to matter.

# %%
photographs = [photo[::3, ::3] for photo in map(np.asarray, load_sample_images().images)]
views = {
    "as it is": lambda p: p,
    "a third of the contrast": lambda p: 0.33 * p + 85,
    "dark": lambda p: 0.25 * p,
    "bright": lambda p: 0.4 * p + 150,
}
figure, axes = plt.subplots(4, 4, figsize=(11, 7.2))
for i, photo in enumerate(photographs):
    normed = []
    for j, (name, view) in enumerate(views.items()):
        seen_as = view(photo.astype(np.float32))
        normed.append(jn.instance_norm(jnp.asarray(seen_as), batch_axis=None, epsilon=1e-3))
        axes[2 * i, j].imshow(seen_as.astype(np.uint8))
        axes[2 * i + 1, j].imshow(np.asarray((normed[-1] / 5 + 0.5).clip(0, 1)))
        axes[2 * i, j].set_title(name)
    apart = max(float(abs(other - normed[0]).max()) for other in normed)
    print(f"photograph {i + 1}: normalized views are {apart:.0e} apart at most, in deviations")
    assert apart < 1e-4
    axes[2 * i, 0].set_ylabel("photograph")
    axes[2 * i + 1, 0].set_ylabel("instance norm")
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# ## 8. Larger steps, faster
#
# The convolutional network at 7 learning rates and with 2 seeds, under one `vmap`: the loss after 100 steps, and the
# way there at the best rate.

# %%
WIDE = 10.0 ** jnp.linspace(-2.5, 0.5, 7)


@partial(jax.jit, static_argnames="steps")
def losses_of(spec, steps=100):
    one = lambda seed, rate: train(convolutional, spec, seed, rate, steps, 32)[2]
    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(jnp.arange(2), WIDE).mean(0)


figure, (left, right_) = plt.subplots(1, 2, figsize=(9, 3.2))
reached = {}
for name, spec, colour, marker in CHOICES[convolutional]:
    curve = np.nan_to_num(losses_of(spec), nan=20.0).clip(0, 20)
    last = curve[:, -10:].mean(1)
    at = last.argmin()
    works = WIDE[last < 0.5]
    reached[name] = last[at], works
    usable = f"{works.min():.3f} to {works.max():.3f}" if len(works) else "none"
    print(f"{name:>13}: loss {last[at]:.3f} at rate {WIDE[at]:.3f}; under 0.5 with rates: {usable}")
    smooth = np.convolve(curve[at], np.full(10, 0.1), "valid")
    left.semilogy(np.arange(9, len(curve[at])), smooth, color=colour, label=f"{name}, rate {WIDE[at]:.2f}")
    right_.loglog(WIDE, last, marker + "-", color=colour, label=name)
left.set(title="Loss, each at its best rate (mean of 10 steps)", xlabel="step", ylabel="cross entropy")
left.legend()
right_.set(title="Loss after 100 steps (20: not a number)", xlabel="learning rate")
right_.legend()
plt.show()
for name in ("batch norm", "instance norm"):
    assert reached[name][0] < reached["none"][0]
    assert reached[name][1].max() > 2 * reached["none"][1].max()

# %% [markdown]
# With a norm the loss is lower after as many steps, and a rate three times as large still trains. One reason: the
# length of the weights before a norm does not matter. So the gradient is at right angles to them, steps make them
# longer, and the longer they are, the smaller the gradient gets. Without a norm, the weights grow until they are no
# numbers.


# %%
@partial(jax.jit, static_argnums=0)
def slope(spec, factor):
    """The gradient by the first weights, so many times as long; these weights."""
    ((weights, *rest), a, b), states = start(spec, SHAPES[convolutional], jax.random.key(0))

    def loss(first):
        logits, _ = convolutional(spec, ([first, *rest], a, b), states, images[:64], True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[:64]).mean()

    return jax.grad(loss)(factor * weights), weights


for name, spec, *_ in (BATCH, NONE):
    (gradient, weights), (of_longer, _) = slope(spec, 1.0), slope(spec, 10.0)
    cosine = abs((gradient * weights).sum() / jnp.linalg.norm(gradient) / jnp.linalg.norm(weights))
    ratio = jnp.linalg.norm(of_longer) / jnp.linalg.norm(gradient)
    print(f"{name:>10}: cosine of gradient and weights {cosine:.4f}; weights × 10, gradient × {ratio:.2f}")
    assert (cosine < 0.01 and 0.09 < ratio < 0.11) == (name == "batch norm")

# %%
for name, spec, *_ in (BATCH, NONE):
    (weights, *_), *_ = start(spec, SHAPES[convolutional], jax.random.key(0))[0]
    (trained, *_), *_ = jax.jit(partial(train, convolutional, spec, steps=100, batch=32))(0, 0.3)[0]
    before, afterwards = float(jnp.linalg.norm(weights)), float(jnp.linalg.norm(trained))
    print(f"{name:>10}, rate 0.3: length of the first weights {before:.1f}, after 100 steps {afterwards:.1f}")
    assert before < afterwards < 100 if name == "batch norm" else not np.isfinite(afterwards)
