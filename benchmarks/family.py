"""The wider family beside the same formulas by hand, as people write them: time, and what is kept to go back."""

import jax
import jax.numpy as jnp

import jaxnorm as jn
from benchmarks.speed import with_vjp
from benchmarks.timing import race, waiting

SHAPE, GROUPS, WINDOW = (32, 56, 56, 64), 8, 5
POSITIONS, ALL = (1, 2), (0, 1, 2)
WIDE = jnp.float32


def _affine(v, p):
    return v * p.scale + p.bias


def _mean_square(x, axes):
    return jnp.mean(x**2, axes, keepdims=True)


def _var(x, axes):
    return jnp.var(x, axes, keepdims=True)


def _filter_response(x, p):
    return jnp.maximum(_affine(x * jax.lax.rsqrt(_mean_square(x, POSITIONS) + 1e-6), p), p.threshold)


def _global_response(x, p):
    length = jnp.sqrt(jnp.sum(x**2, POSITIONS, keepdims=True))
    return _affine(x * length / (jnp.mean(length, -1, keepdims=True) + 1e-6), p) + x


def _local_response(x, p):
    low, high = (WINDOW - 1) // 2, WINDOW // 2
    padded = jnp.pad(x**2, [(0, 0)] * (x.ndim - 1) + [(low, high)])
    total = sum(jax.lax.slice_in_dim(padded, i, i + x.shape[-1], axis=-1) for i in range(WINDOW))
    return _affine(x / (1 + 1e-4 / WINDOW * total) ** 0.75, p)


def _evo_s0(x, p):
    blocks = x.reshape(*x.shape[:-1], GROUPS, -1)
    std = jnp.sqrt(jnp.var(blocks, (1, 2, 4), keepdims=True) + 1e-5)
    std = jnp.broadcast_to(std, (x.shape[0], 1, 1, GROUPS, x.shape[-1] // GROUPS)).reshape(x.shape[0], 1, 1, -1)
    return _affine(x * jax.nn.sigmoid(p.v * x) / std, p)


def _evo_b0(x, p):
    own = p.v * x + jnp.sqrt(_var(x, POSITIONS) + 1e-5)
    return _affine(x / jnp.maximum(jnp.sqrt(_var(x, ALL) + 1e-5), own), p)


def _switchable(x, p):
    each = [(jnp.mean(x, axes, keepdims=True), _var(x, axes)) for axes in (POSITIONS, (1, 2, 3), ALL)]
    means, variances = zip(*each, strict=True)
    mean, var = (
        sum(share * v for share, v in zip(jax.nn.softmax(logits), each, strict=True))
        for logits, each in ((p.mean_logits, means), (p.var_logits, variances))
    )
    return _affine((x - mean) * jax.lax.rsqrt(var + 1e-5), p)


def _renorm(x, p):
    mean, std = jnp.mean(x, ALL), jnp.sqrt(jnp.var(x, ALL) + 1e-5)
    r, d = jax.lax.stop_gradient((jnp.clip(std, 1 / 3, 3), jnp.clip(mean, -5, 5)))  # running ones of 0 and 1
    return _affine((x - mean) / std * r + d, p)


def _unit(x, p):
    return _affine(x / jnp.linalg.norm(x, axis=-1, keepdims=True), p)


def _simple(x, p):
    return _affine(x * jax.lax.rsqrt(_var(x, -1) + 1e-6), p)


def _tanh(x, p):
    return _affine(jnp.tanh(p.alpha * x), p)


FAMILY = {
    "filter response": (jn.FilterResponseNorm(), _filter_response),
    "global response": (jn.GlobalResponseNorm(), _global_response),
    "local response": (jn.LocalResponseNorm(size=WINDOW, use_scale=True, use_bias=True), _local_response),
    "unit": (jn.UnitNorm(use_scale=True, use_bias=True), _unit),
    "simple": (jn.SimpleNorm(use_bias=True), _simple),
    "dynamic tanh": (jn.DynamicTanh(), _tanh),
    "EvoNorm-S0": (jn.EvoNormS0(groups=GROUPS), _evo_s0),
    "EvoNorm-B0": (jn.EvoNormB0(), _evo_b0),
    "switchable": (jn.SwitchableNorm(), _switchable),
    "batch renorm": (jn.BatchRenorm(), _renorm),
}
"""A spec, and the formula by hand."""


def contestants(name):
    """(x, params) -> (y, running statistics) of both."""
    spec, by_hand = FAMILY[name]
    state = spec.init(SHAPE[-1])[1]
    return {
        "jaxnorm": lambda x, params: spec.apply(params, state, x, train=True),
        "by hand": lambda x, params: (by_hand(x.astype(WIDE), params).astype(x.dtype), None),
    }


def data(name, shape=SHAPE, dtype="float32"):
    """A cotangent of y, x, and parameters."""
    keys = jax.random.split(jax.random.key(0), 2)
    g, x = (jax.random.normal(key, shape, dtype) for key in keys)
    return g, x, FAMILY[name][0].init(shape[-1])[0]


def kept(apply, x, params):
    """Bytes kept for the backward pass, over those of x."""
    pull = jax.eval_shape(lambda x, params: jax.vjp(lambda *by: apply(*by)[0], x, params)[1], x, params)
    return sum(v.size * v.dtype.itemsize for v in jax.tree.leaves(pull)) / x.nbytes


def measure(name, rounds):
    """Times forward and with the backward pass, and bytes kept in bfloat16."""
    g, x, params = data(name)
    functions, row = contestants(name), {"name": name}
    for what, make, args in (
        ("forward", lambda f: f, (x, params)),
        ("both", lambda f: with_vjp(f, learned=2), (g, x, params)),
    ):
        times = race({key: waiting(make(f), *args) for key, f in functions.items()}, rounds)
        row[what] = {"by hand": times.median("by hand"), "ratio": times.ratio("jaxnorm", "by hand")}
        row[what]["quartiles"] = times.spread("jaxnorm", "by hand")
    narrow = data(name, (4, 14, 14, SHAPE[-1]), "bfloat16")[1:]
    row["kept"] = {key: kept(f, *narrow) for key, f in functions.items()}
    return row
