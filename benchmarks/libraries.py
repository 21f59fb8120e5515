"""The same norm in several libraries, in training mode.

A builder takes a case and gives a function of (x, scale, bias, mean, var), the latter two being running statistics, and
a mask if the case has one. That function gives y, and the running statistics after a batch (batch norm). The builder
gives None where its library has no such norm.
"""

from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from inspect import signature

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxnorm as jn


def ours(case, momentum=0.99, axis_name=None):
    """jaxnorm."""
    spec = replace(case.spec, axis_name=axis_name)
    if hasattr(spec, "momentum"):
        spec = replace(spec, momentum=momentum)
    params, state = spec.init(case.channels)

    def apply(x, scale, bias, mean, var, mask=None):
        running = state and jn.RunningStats(mean, var)
        return spec.apply(params._replace(scale=scale, bias=bias), running, x, train=True, where=mask)

    return apply


def implementations():
    """Those of jaxnorm's norms of rows that can be named, None being its own choice; that alone without names."""
    named = "implementation" in signature(jn.layer_norm).parameters
    return (None, "xla", "pallas") if named else (None,)


def rows(case, implementation):
    """jaxnorm's layer or RMS norm in one implementation."""
    named = {} if implementation is None else {"implementation": implementation}

    def apply(x, scale, bias, mean, var):
        y = jn.rms_norm(x, scale, **named) if case.kind == "rms" else jn.layer_norm(x, scale, bias, **named)
        return y, None

    return apply


def standardize(case):
    """jax.nn.standardize, then scale and bias in the dtype of x; channels last, centred, no masks."""
    if case.masked or case.kind == "rms" or case.channel_axis != -1:
        return None
    positions = tuple(range(1, len(case.shape) - 1))

    def apply(x, scale, bias, mean, var):
        match case.kind:
            case "batch":
                y = jax.nn.standardize(x, axis=(0, *positions))
            case "instance":
                y = jax.nn.standardize(x, axis=positions)
            case "group":
                blocks = x.reshape(*x.shape[:-1], case.groups, -1)
                y = jax.nn.standardize(blocks, axis=(*positions, -1)).reshape(x.shape)
            case "layer":
                y = jax.nn.standardize(x)
        return y * scale.astype(x.dtype) + bias.astype(x.dtype), None

    return apply


def flax(case, momentum=0.99, axis_name=None, fast=True):
    """flax.linen, by its default formula for the variance or the stable one."""
    shared = {"use_fast_variance": fast, "dtype": case.dtype, "epsilon": 1e-5}
    if case.kind == "group" and case.channel_axis != -1:
        return None
    match case.kind:
        case "batch":
            norm = nn.BatchNorm(False, axis=case.channel_axis, momentum=momentum, axis_name=axis_name, **shared)
        case "instance":
            norm = nn.InstanceNorm(feature_axes=case.channel_axis, **shared)
        case "group":
            norm = nn.GroupNorm(case.groups, **shared)
        case "layer":
            norm = nn.LayerNorm(**shared)
        case "rms":
            norm = nn.RMSNorm(**shared)

    def apply(x, scale, bias, mean, var, mask=None):
        params = {"scale": scale} if bias is None else {"scale": scale, "bias": bias}
        variables = {"params": params, "batch_stats": {"mean": mean, "var": var}}
        return norm.apply(variables, x, mask=mask, mutable=["batch_stats"])

    return apply


def haiku(case, momentum=0.99):
    """dm-haiku: no masks."""
    if case.masked:
        return None
    import haiku as hk

    layout = {"data_format": "channels_first" if case.channel_axis == 1 else "channels_last"}
    learned = {"create_scale": True, "create_offset": True}

    def norm(x):
        match case.kind:
            case "batch":
                return hk.BatchNorm(**learned, decay_rate=momentum, **layout)(x, is_training=True)
            case "instance":
                return hk.InstanceNorm(**learned, **layout)(x)
            case "group":
                return hk.GroupNorm(case.groups, **layout)(x)
            case "layer":
                return hk.LayerNorm(-1, **learned)(x)
            case "rms":
                return hk.RMSNorm(-1)(x)

    net = hk.transform_with_state(norm)
    shapes, state = jax.eval_shape(net.init, None, jax.ShapeDtypeStruct(case.shape, case.dtype))

    def apply(x, scale, bias, mean, var):
        values = {"scale": scale, "offset": bias, "mean_ema": mean, "var_ema": var}

        def fill(path, old):
            name = path[-1].key if path[-1].key in values else path[0].key.split("/")[-1]
            one = jnp.ones(old.shape, old.dtype)  # counters
            return values[name].reshape(old.shape).astype(old.dtype) if old.size > 1 else one

        params, old = (jax.tree_util.tree_map_with_path(fill, tree) for tree in (shapes, state))
        y, new = net.apply(params, old, None, x)
        return y, {path.split("/")[-1]: leaves["average"] for path, leaves in new.items()}

    return apply


def equinox(case, momentum=0.99):
    """equinox: examples under vmap, channels first, no masks."""
    if case.masked or (len(case.shape) > 2 and case.channel_axis != 1):
        return None
    import equinox as eqx

    match case.kind:
        case "batch":
            make = eqx.nn.make_with_state(eqx.nn.BatchNorm)
            norm, state = make(case.channels, "batch", momentum=momentum, mode="batch")
        case "instance" | "group":
            norm = eqx.nn.GroupNorm(case.channels if case.kind == "instance" else case.groups, case.channels)
        case "layer":
            norm = eqx.nn.LayerNorm(case.channels)
        case "rms":
            norm = eqx.nn.RMSNorm(case.channels, use_bias=False)

    def apply(x, scale, bias, mean, var):
        learned = eqx.tree_at(lambda n: n.weight, norm, scale)
        learned = learned if bias is None else eqx.tree_at(lambda n: n.bias, learned, bias)
        if case.kind != "batch":
            return jax.vmap(learned)(x), None
        # A copy: a state can be set once.
        old = jax.tree.map(lambda v: v, state).set(norm.batch_state_index, (mean, var))
        y, new = jax.vmap(learned, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, old)
        return y, new.get(norm.batch_state_index)

    return apply


FLAX = "flax"
"""Flax with its default variance: what the others are divided by."""

_KINDS = ("batch", "instance", "group", "layer", "rms")
"""What the other libraries have."""


def _other(build):
    return lambda case, **options: build(case, **options) if case.kind in _KINDS else None


LIBRARIES = {
    "jaxnorm": ours,
    FLAX: _other(flax),
    "flax stable": _other(partial(flax, fast=False)),
    "haiku": _other(haiku),
    "equinox": _other(equinox),
}


def installed():
    """The libraries of this table that this environment has."""
    missing = {name for name in ("haiku", "equinox") if find_spec(name) is None}
    return {name: build for name, build in LIBRARIES.items() if name not in missing}
