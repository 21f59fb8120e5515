"""Worst errors on hostile inputs, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Case
from benchmarks.libraries import installed

KINDS = ("batch", "instance", "layer", "group")
SHAPE = (32, 28, 28, 8)


def hostile(shape):
    """Inputs on which one formula or another loses its digits, by name."""
    noise = np.random.default_rng(0).standard_normal(shape)
    outlier, row, sample = noise.copy(), noise.copy(), noise.copy()
    outlier.flat[0] = 1e6
    row[:, 0] += 1e4
    sample[0] += 1e4
    padding = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) % 2
    return {
        "standard normal": noise,
        "mean 100": noise + 1e2,
        "mean 1e4": noise + 1e4,
        "mean 1e6": noise + 1e6,
        "tiny variance": 1 + 1e-4 * noise,
        "outlier": outlier,
        "padding": noise * padding,
        "ramp": np.linspace(-1e4, 1e4, noise.size).reshape(shape),
        "first row": row,
        "first sample": sample,
        "constant": np.full(shape, 0.1),
    }


def exact(kind, x, epsilon=1e-5):
    """y, mean and variance of channels-last data in float64."""
    x = x.astype(np.float64)
    axes = {"batch": (0, 1, 2), "instance": (1, 2), "layer": -1, "group": (1, 2, 3)}[kind]
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / np.sqrt(var + epsilon), mean.squeeze(), var.squeeze()


def errors(build, kind, x):
    """The error of y in units of 2⁻²⁴ (1 + |y|); for batch norm, of mean and variance in float32's units, 2⁻²⁴.

    That of the mean is relative to the standard deviation, that of the variance to the variance.
    """
    x = x.reshape(-1, SHAPE[-2] * SHAPE[-1]) if kind == "layer" else x
    want, mean, var = exact(kind, x)
    case = Case(kind, x.shape, groups=1)
    apply, place = build(case, momentum=0.0), -1
    if apply is None:
        x, place = np.moveaxis(x, -1, 1), 1
        apply = build(Case(kind, x.shape, channel_axis=1, groups=1), momentum=0.0)
    zeros, ones = jnp.zeros(case.channels), jnp.ones(case.channels)
    y, state = jax.jit(apply)(jnp.asarray(x), ones, zeros, zeros, ones)
    y = np.moveaxis(np.asarray(y, np.float64), place, -1)
    found = {"y": np.abs(y - want) / (1 + np.abs(want))}
    if kind == "batch":
        vectors = (np.asarray(v, np.float64).ravel() for v in jax.tree.leaves(state))
        got_mean, got_var = (v for v in vectors if v.size == case.channels)
        found["mean"] = np.abs(got_mean - mean) / np.sqrt(var + 1e-5)
        found["variance"] = np.abs(got_var - var) / (var + 1e-5)
    # NaN is the worst of all.
    return {what: float(np.nan_to_num(error, nan=np.inf).max()) * 2**24 for what, error in found.items()}


def measure(name):
    """Errors of each library on one hostile input, the worst over the kinds of norms."""
    x = hostile(SHAPE)[name].astype(np.float32)
    table = {}
    for library, build in installed().items():
        found = [errors(build, kind, x) for kind in KINDS]
        table[library] = {what: max(f.get(what, 0.0) for f in found) for what in ("y", "mean", "variance")}
    return table
