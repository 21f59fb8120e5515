"""What it takes to get a program: seconds to trace, lower and compile the gradient of a network of fifty norms."""

import time
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxnorm as jn

DEPTH = 50
FEATURES = 16
TARGETS = ("cpu", "v6e", "h100")
STAGES = ("trace", "lower", "compile")

NORMS = {
    "batch": ("BatchNorm", {"use_running_average": False}, (32, FEATURES)),
    "layer": ("LayerNorm", {}, (32, FEATURES)),
    "group": ("GroupNorm", {"num_groups": 4}, (8, 4, 4, FEATURES)),
    "RMS": ("RMSNorm", {}, (32, FEATURES)),
}
"""Of each kind, the module of Flax and of ours, and a shape for it."""

LIBRARIES = {"flax": nn, "jaxnorm": jn.linen}


class Deep(nn.Module):
    """Many times a small product, a norm and an activation."""

    norm: partial
    depth: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = nn.relu(self.norm()(nn.Dense(FEATURES)(x)))
        return x


def gradient(norm, shape, depth):
    """The gradient of such a network, which also gives its new running statistics; and its arguments, as shapes."""
    model = Deep(norm, depth)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    params, rest = variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def loss(params, rest, x):
        y, new = model.apply({"params": params, **rest}, x, mutable=list(rest))
        return y.sum(), new

    return jax.grad(loss, has_aux=True), (params, rest, x)


def measure(kind, library, sharding=None):
    """Seconds for each stage, with nothing in the caches, and instructions of the lowered program."""
    jax.clear_caches()
    name, options, shape = NORMS[kind]
    f, args = gradient(partial(getattr(LIBRARIES[library], name), **options), shape, DEPTH)
    f = jax.jit(f) if sharding is None else jax.jit(f, in_shardings=sharding)
    times = [time.perf_counter()]
    traced = f.trace(*args)
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    lowered.compile()
    times.append(time.perf_counter())
    instructions = sum(" = " in line for line in lowered.as_text().splitlines())
    return {**{s: b - a for s, a, b in zip(STAGES, times, times[1:], strict=False)}, "instructions": instructions}


def compare(kind, target, rounds):
    """The least of several interleaved rounds, per library."""
    if target == "cpu":
        sharding = None
    else:
        from benchmarks.targets import devices

        sharding = jax.sharding.SingleDeviceSharding(devices(target)[0])
    found = {library: [] for library in LIBRARIES}
    for _ in range(rounds):
        for library, costs in found.items():
            costs.append(measure(kind, library, sharding))
    return {library: {name: min(c[name] for c in costs) for name in costs[0]} for library, costs in found.items()}
