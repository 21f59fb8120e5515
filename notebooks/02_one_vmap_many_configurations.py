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
# # One vmap, many configurations
#
# A norm of jaxnorm is a pytree whose numbers are leaves: ε and momentum are arrays like any other, and so is the gate
# ρ among the parameters of `jn.BatchInstanceNorm`, which goes from instance norm (0) to batch norm (1). So a thousand
# configurations are a thousand rows of one array, and one `vmap` trains a network for each of them in one compiled
# program. Here is one, beside a Python loop over the same, and what it tells about momentum and batch size.

# %%
import time
from itertools import product

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxnorm as jn

plt.rcParams.update({
    "figure.dpi": 110, "figure.constrained_layout.use": True, "font.size": 9, "axes.titlesize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
})  # fmt: skip

# %% [markdown]
# ## The configurations
#
# Momentum, batch size, ρ, ε and seed. A batch size is a shape, and shapes cannot differ within an array. But all
# drawn batches may have 32 examples of which the first 2, or 8, count: that is what `where` is for. Statistics and
# loss are those of the small batch, exactly.

# %%
MOMENTA = [0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999]
SIZES = [2, 4, 8, 16, 32]
GATES = [0.0, 0.25, 0.5, 0.75, 1.0]
EPSILONS = [1e-5]
SEEDS = [0, 1, 2, 3, 4]
GRID = np.array(list(product(MOMENTA, SIZES, GATES, EPSILONS, SEEDS)), np.float32)
momenta, sizes, gates, epsilons, seeds = jnp.asarray(GRID.T)
print(f"{len(GRID)} configurations")

# %% [markdown]
# ## The network
#
# One convolution of 3 × 3 on pictures of digits, as a product with patches that are cut out once, the norm, and a
# linear read-out of quarters of the picture. It is written for one configuration, and knows nothing of the others.

# %%
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images, labels = digits.images[order].astype(np.float32) / 16, jnp.asarray(digits.target[order])
windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), (1, 2))
images = jnp.asarray(windows.reshape(-1, 6, 6, 9))
TRAIN, TEST = 1297, slice(1297, 1797)
STEPS, LARGEST, CHANNELS = 120, max(SIZES), 8


def forward(spec, params, state, x, train, where=None):
    convolution, norm, readout = params
    x, state = spec.apply(norm, state, x @ convolution, train=train, where=where)
    x = jax.nn.relu(x).reshape(-1, 2, 3, 2, 3, CHANNELS).mean((2, 4)).reshape(-1, 4 * CHANNELS)
    return x @ readout, state


def train(spec, gate, size, seed):
    """A network trained with batches of a size: its parameters and running statistics."""
    key = jax.random.key(seed.astype(jnp.uint32))
    k1, k2, k3 = jax.random.split(key, 3)
    norm, state = spec.init(CHANNELS)
    norm = norm._replace(gate=jnp.full(CHANNELS, gate))
    params = jax.random.normal(k1, (9, CHANNELS)) / 2, norm, jax.random.normal(k2, (4 * CHANNELS, 10)) / 4
    optimizer = optax.sgd(0.05, momentum=0.9)

    def step(carry, rows):
        params, state, moving = carry
        counts = jnp.arange(LARGEST) < size

        def loss(params):
            where = counts[:, None, None, None]
            logits, new = forward(spec, params, state, images[rows], True, where)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows])
            return losses.mean(where=counts), new

        grads, state = jax.grad(loss, has_aux=True)(params)
        # What is swept is not learned.
        grads = grads[0], grads[1]._replace(gate=jnp.zeros(CHANNELS)), grads[2]
        updates, moving = optimizer.update(grads, moving)
        return (optax.apply_updates(params, updates), state, moving), None

    rows = jax.random.randint(k3, (STEPS, LARGEST), 0, TRAIN)
    (params, state, _), _ = jax.lax.scan(step, (params, state, optimizer.init(params)), rows)
    return params, state


def score(momentum, size, gate, epsilon, seed):
    """Accuracy at test time; how far the running variance is from that of the data, relative; the same of the mean."""
    spec = jn.BatchInstanceNorm(momentum=momentum, epsilon=epsilon)
    params, state = train(spec, gate, size, seed)
    logits, _ = forward(spec, params, state, images[TEST], False)
    exact = jn.moments(images[:TRAIN] @ params[0], axis=(0, 1, 2))
    off = jnp.abs(state.var / exact.var - 1).mean(), (jnp.abs(state.mean - exact.mean) / exact.std).mean()
    return (logits.argmax(-1) == labels[TEST]).mean(), *off


# %% [markdown]
# ## One program
#
# `jax.lax.map` goes through the rows in blocks of 20, each under one `vmap`, which suits a CPU. On an accelerator,
# let it be all of them.

# %%
many = jax.jit(lambda rows: jax.lax.map(lambda row: score(*row), rows, batch_size=20))


def seconds(run, *args):
    """What comes of a call, and how long it takes."""
    began = time.perf_counter()
    return jax.block_until_ready(run(*args)), time.perf_counter() - began


compiled, compiling = seconds(many.lower(jnp.asarray(GRID)).compile)
(accuracy, var_off, mean_off), together = seconds(compiled, jnp.asarray(GRID))
print(f"{len(GRID)} networks of {STEPS} steps: {together:.1f} s, and {compiling:.1f} s to compile")

# %% [markdown]
# A Python loop over the same comes in two kinds. Where the numbers are constants of the program, as attributes of a
# module are, each configuration is compiled anew. Where they are arguments, one is compiled, and run a thousand
# times: on two cores, which a single network keeps busy already, that is not much slower. Both loops are stopped
# early, and the rest is taken to be like what they did. The results are the same.

# %%
alone = jax.jit(lambda row: score(*row))
some = np.random.default_rng(0).choice(len(GRID), 40, replace=False)
alone(jnp.asarray(GRID[0]))  # compiles
looped, loop = seconds(lambda: [alone(jnp.asarray(GRID[i])) for i in some])
loop *= len(GRID) / len(some)
_, anew = seconds(lambda: [jax.jit(lambda row=row: score(*map(jnp.asarray, row)))() for row in GRID[:3]])
anew *= len(GRID) / 3
print(f"a Python loop, compiled once: {loop:.0f} s, {loop / together:.1f} times as long")
print(f"a Python loop, compiled for each: {anew / 60:.0f} min, {anew / together:.0f} times as long")
apart = np.abs(np.array([result[0] for result in looped]) - np.asarray(accuracy)[some])
print(f"accuracies are {apart.mean():.4f} apart on average, {apart.max():.3f} at most")
assert apart.mean() < 0.01

# %% [markdown]
# ## What it shows about momentum and batch size
#
# Running statistics are averages of about $1/(1-m)$ batches, over a past in which the weights moved. Without momentum
# they are those of the last batch alone, and the smaller it is, the worse they are. Much momentum remembers weights
# that are gone, and the initial (0, 1): of that, $m^{120}$ is left after 120 steps.

# %%
shape = [len(v) for v in (MOMENTA, SIZES, GATES, EPSILONS, SEEDS)]
table, off = (np.asarray(v).reshape(shape).mean((3, 4)) for v in (accuracy, var_off))
batch_norm, instance_norm = table[..., -1], table[..., 0]

figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
for ax, values, title, colours in (
    (axes[0], off[..., -1], "Running variance: relative error", "magma_r"),
    (axes[1], batch_norm, "Test accuracy, batch norm (ρ = 1)", "viridis"),
):
    picture = ax.imshow(values.T, origin="lower", aspect="auto", cmap=colours, vmax=max(1, values.max()))
    for i, j in np.ndindex(values.shape):
        dark = picture.norm(values[i, j]) > 0.6
        ax.text(i, j, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=7,
                color="white" if dark == (colours == "magma_r") else "black")  # fmt: skip
    ax.set(title=title, xlabel="momentum", ylabel="batch size")
    ax.set_xticks(range(len(MOMENTA)), [f"{m:g}" for m in MOMENTA])
    ax.set_yticks(range(len(SIZES)), SIZES)
    ax.spines[:].set_visible(False)
for j, size in enumerate(SIZES):
    colour = plt.get_cmap("viridis")(j / len(SIZES))
    axes[2].plot(GATES, table[:, j].max(0), "o-", color=colour)
    axes[2].text(1.04, table[:, j, -1].max(), f"batches of {size}", color=colour, va="center")
axes[2].set(title="Instance to batch norm, best momentum", xlabel="gate ρ", ylabel="test accuracy")
axes[2].set_xlim(None, 1.35)
axes[2].set_xticks(GATES)
plt.show()

best = {size: MOMENTA[int(off[:, j, -1].argmin())] for j, size in enumerate(SIZES)}
print("the momentum whose running variance is nearest:", best)
print("accuracy at batches of 2, by momentum:", *batch_norm[:, 0].round(3))
print(f"left of the initial state at 0.999: {0.999**STEPS:.0%}")
print(f"running variance without momentum: off by {off[0, 0, -1]:.0%} at batches of 2, {off[0, -1, -1]:.0%} at 32")
for j, size in enumerate(SIZES):
    print(
        f"batches of {size:2}: instance norm {instance_norm[:, j].max():.1%}, batch norm {batch_norm[:, j].max():.1%}"
    )
assert off[0, 0, -1] > 2 * off[0, -1, -1]
assert batch_norm[:, 0].argmax() not in (0, len(MOMENTA) - 1)
assert np.ptp(instance_norm.mean(1)) < 0.02  # it keeps running statistics, but has no use for them
assert (instance_norm.max(0) < batch_norm.max(0))[1:].all()
# With batches of two, the seeds differ by more than the gates do.
by_seed = np.asarray(accuracy).reshape(shape)[:, 0, :, 0].max(0)
print("batches of 2: accuracy by gate", *by_seed.mean(1).round(3), "± over seeds", *by_seed.std(1, ddof=1).round(3))
assert np.ptp(by_seed.mean(1)) < by_seed.std(1, ddof=1).max()

# %% [markdown]
# The default momentum, 0.99 here and in Flax, is made for long training: it is far too much for 120 steps. And from
# batches of four on, the more of batch norm the better. With two examples, no gate is better than another by more
# than the seeds differ.

# %% [markdown]
# ## The scale of ε
#
# Another grid, another array: ε from 10⁻⁸ to 10, for five seeds. Where ε is above the variance of what is normalized,
# it is the norm that disappears.

# %%
wide = 10.0 ** np.arange(-8, 1.5, 0.5)
sweep = np.array(list(product([0.9], [32], [1.0], wide, SEEDS)), np.float32)
by_epsilon = np.asarray(many(jnp.asarray(sweep))[0]).reshape(len(wide), len(SEEDS))
typical = float(
    jnp.median(jn.moments(images[:TRAIN] @ jax.random.normal(jax.random.key(0), (9, 64)) / 2, (0, 1, 2)).var)
)
figure, ax = plt.subplots(figsize=(5, 3))
ax.fill_between(wide, by_epsilon.min(1), by_epsilon.max(1), alpha=0.2, color="#0072B2")
ax.semilogx(wide, by_epsilon.mean(1), "o-", color="#0072B2")
ax.axvline(typical, color="#777777", linestyle="--")
ax.text(typical * 0.8, by_epsilon.min(), "variance of the data", rotation=90, ha="right", va="bottom", color="#777777")
ax.set(title="Test accuracy by ε: mean and range of five seeds", xlabel="ε", ylabel="test accuracy")
plt.show()
print("mean accuracy by ε:", *by_epsilon.mean(1).round(3))
assert np.ptp(by_epsilon.mean(1)[wide < 0.01 * typical]) < 0.01 < np.ptp(by_epsilon.mean(1)[wide > typical])
