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
# # One batch, many devices
#
# Batch norm shares statistics between examples, and so between the devices that hold them. This notebook trains the
# same program on 1 device and on 8, compares what comes out, and looks at what the compiled programs send. The
# devices are eight of JAX's on one CPU; on a machine that has eight, delete the first line.
#
# 1. [Nothing to name](#nothing-to-name-jit-over-sharded-arrays): `jit` over sharded arrays
# 2. [What is sent](#what-is-sent)
# 3. [With a name](#with-a-name-shard_map): `shard_map`
# 4. [Ghost batches](#ghost-batches)
# 5. [Population statistics](#population-statistics-over-eight-devices), over eight devices

# %%
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from sklearn.datasets import load_digits

import jaxnorm as jn

BLUE, RED, GREY = "#0072B2", "#D55E00", "#777777"
plt.rcParams.update({
    "figure.dpi": 110, "figure.constrained_layout.use": True, "font.size": 9, "axes.titlesize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
})  # fmt: skip

# %% [markdown]
# The data: 1,797 handwritten digits, of 8 × 8 pixels. The model: two convolutions, each with a batch norm.


# %%
class Net(nn.Module):
    norm: jn.Spec

    @nn.compact
    def __call__(self, x, train):
        for features in (16, 32):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)
            x = nn.relu(jn.linen.Norm(self.norm)(x, train=train))
        return nn.Dense(10)(x.mean((1, 2)))


digits = load_digits()
images = digits.images[..., None].astype(np.float32)
labels = digits.target
order = np.random.default_rng(0).permutation(len(labels))
train_on, test_on = order[:1536], order[1536:1792]
BATCH = 256

optimizer = optax.sgd(0.2, momentum=0.9)
model = Net(jn.BatchNorm(momentum=0.9))
variables = model.init(jax.random.key(0), images[:1], train=False)


def train_step(model, variables, opt_state, x, y, axis_name=None):
    def loss(params):
        logits, updates = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), updates

    # Under shard_map, the gradient of what is the same on all devices is a sum over them, and a loss is a share's.
    (value, updates), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    if axis_name:
        value = jax.lax.pmean(value, axis_name)
        grads = jax.tree.map(lambda g: g / jax.lax.axis_size(axis_name), grads)
    steps, opt_state = optimizer.update(grads, opt_state)
    return {"params": optax.apply_updates(variables["params"], steps), **updates}, opt_state, value


# %% [markdown]
# ## Nothing to name: `jit` over sharded arrays
#
# A mesh of one device or of eight, the batch spread over it. The program does not know which.


# %%
def train(step, devices, epochs=6):
    mesh = jax.make_mesh((devices,), ("batch",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("batch"))
    state = jax.device_put((variables, optimizer.init(variables["params"])), whole)
    step, losses = jax.jit(step(mesh)), []
    for epoch in range(epochs):
        for rows in np.random.default_rng(epoch).permutation(train_on).reshape(-1, BATCH):
            x, y = jax.device_put((images[rows], labels[rows]), split)
            *state, loss = step(*state, x, y)
            losses.append(float(loss))
    program = step.lower(*state, x, y).compile().as_text()
    return np.array(losses), jax.device_get(state[0]), program


def by_jit(mesh):
    return partial(train_step, model)


one, eight = (train(by_jit, devices) for devices in (1, 8))


def compare(found, wanted):
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max() / (np.abs(b).max() + 1e-9), found[1], wanted[1])
    print("loss at the start and in the end:", *found[0][[0, -1]].round(4), "and", *wanted[0][[0, -1]].round(4))
    for kind, tree in apart.items():
        print(f"{kind}: {max(jax.tree.leaves(tree)):.1e} apart at most, relative to the largest")


compare(eight, one)
first_epoch = abs(eight[0] - one[0])[: len(train_on) // BATCH]
print(f"losses of the first epoch are {first_epoch.max():.0e} apart at most")
assert first_epoch.max() < 1e-5

# %% [markdown]
# Sums over devices round in another order than sums over rows. In the first epoch the losses agree to the last digits;
# later such a digit may turn a relu over, and from there on both go ways of their own, equally good ones.


# %% [markdown]
# ## What is sent
#
# All collectives of the compiled step. The gradients of weights have to be summed over devices, whatever the norm;
# XLA puts several sums into one collective. Those of 16 or 32 numbers are the norms': two sums forward, two backward.
# Each norm has two in conditionals: on a CPU, statistics are taken about 0 or about the running mean, and each way has
# its sum; and where that was far off, there is another look.


# %%
def collectives(program):
    """Kind and shapes of each, and whether it is inside of a conditional."""
    found, inside = [], False
    for line in program.splitlines():
        if line and not line.startswith((" ", "}")):
            inside = "branch" in line or "region" in line or "while" in line or "body" in line
        if match := re.search(r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(", line):
            shapes = re.findall(r"\w+\[[\d,]*\]", match[1])
            found.append((match[2], " ".join(shapes), "in a conditional" if inside else ""))
    return found


for name, (*_, program) in {"1 device": one, "8 devices": eight}.items():
    print(f"{name}: {len(collectives(program))} collectives")
    for line in collectives(program):
        print("   ", *line)

# %% [markdown]
# How much of it is the norms'? Their vectors, beside the gradients of the weights, in numbers sent by each device;
# and whether both programs train alike.


# %%
def numbers(shapes):
    """How many numbers arrays of these shapes have: 'f32[16,1] f32[]' has 17."""
    return [int(np.prod([int(n) for n in dims.split(",") if n])) for dims in re.findall(r"\[([\d,]*)\]", shapes)]


sent = [n for _, shapes, _ in collectives(eight[2]) for n in numbers(shapes)]
weights = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
of_norms = sum(sent) - weights - 1  # and the loss
figure, axes = plt.subplots(1, 2, figsize=(10, 2.8), width_ratios=(1.6, 1))
axes[0].plot(one[0], color=GREY, linewidth=3, alpha=0.5, label="1 device")
axes[0].plot(eight[0], ".", color=BLUE, markersize=5, label="8 devices")
axes[0].set(title="The same training", xlabel="step", ylabel="loss")
axes[0].legend()
axes[1].barh(["gradients\nof weights", "statistics\nof two norms"], [weights, of_norms], color=[GREY, RED])
for i, n in enumerate((weights, of_norms)):
    axes[1].text(n, i, f" {n:,}", va="center")
axes[1].set(title="Numbers that a step sends", xlim=(0, 1.25 * weights))
plt.show()
print(f"numbers sent: {weights:,} of gradients, {of_norms:,} of norms, those in conditionals with them")
assert 0 < of_norms < 0.2 * weights

# %% [markdown]
# ## With a name: `shard_map`
#
# The same step, written for one share of the batch. The norms are told the name of the axis, and that is all.


# %%
def by_shard_map(mesh):
    step = partial(train_step, Net(jn.BatchNorm(momentum=0.9, axis_name="batch")), axis_name="batch")
    return jax.shard_map(step, mesh=mesh, in_specs=(P(), P(), P("batch"), P("batch")), out_specs=P())


named = train(by_shard_map, 8)
compare(named, one)
assert abs(named[0] - one[0])[: len(train_on) // BATCH].max() < 1e-5


# %% [markdown]
# One norm alone: one collective forward and one backward, of two vectors each. A third is compiled into a
# conditional, for a running mean that is far off.


# %%
def norm_alone(devices, **options):
    mesh = jax.make_mesh((devices,), ("batch",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))
    spec = jn.BatchNorm(axis_name="batch", **options)
    params, state = spec.init(32)

    def both(x, g):
        y, pull, new = jax.vjp(lambda x: spec.apply(params, state, x, train=True), x, has_aux=True)
        return y, new, pull(g)

    split = P("batch")
    both = jax.shard_map(both, mesh=mesh, in_specs=split, out_specs=(split, P(), split))
    x = jnp.ones((256, 8, 8, 32))
    return collectives(jax.jit(both).lower(x, x).compile().as_text())


for devices in (2, 8):
    print(f"{devices} devices:", *norm_alone(devices), sep="\n    ")

# %% [markdown]
# ## Ghost batches
#
# Groups of 16 are within a device's share of 32: y needs no collective, and one is for the running statistics. Groups
# of 64 lie across two devices each.

# %%
for size in (16, 64):
    print(f"ghosts of {size}:", *norm_alone(8, virtual_batch_size=size), sep="\n    ")

# %% [markdown]
# ## Population statistics, over eight devices
#
# After training, running averages lag behind the weights. Recalibration merges the moments of all batches; sharded
# batches make it a program for eight devices.

# %%
mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
batches = (jax.device_put(images[rows], NamedSharding(mesh, P("batch"))) for rows in np.split(train_on, 6))
exact = jn.linen.recalibrate(model, eight[1], batches)
accuracy = {}
for name, found in (("running averages", eight[1]), ("population statistics", exact)):
    right = model.apply(found, images[test_on], train=False).argmax(-1) == labels[test_on]
    accuracy[name] = right.mean()
    print(f"{name}: {right.mean():.1%} of {len(test_on)} test digits")
assert accuracy["population statistics"] > accuracy["running averages"]
# The first norm sees the first convolution, whose statistics over all images can be had at once.
first = nn.Conv(16, (3, 3), use_bias=False).apply({"params": eight[1]["params"]["Conv_0"]}, images[train_on])
np.testing.assert_allclose(exact["batch_stats"]["Norm_0"]["var"], first.var((0, 1, 2)), rtol=1e-4)
