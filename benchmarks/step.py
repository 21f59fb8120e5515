"""Whole programs: a training step of a ResNet-18, and a grid of configurations."""

import time
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxnorm as jn
from benchmarks.networks import LinenResNet18
from benchmarks.timing import race, waiting

BATCH = 64
GRID = 256

BATCH_NORMS = {
    "jaxnorm": jn.linen.BatchNorm,
    "flax": nn.BatchNorm,
    "flax stable": partial(nn.BatchNorm, use_fast_variance=False),
}


def _seconds(f):
    started = time.perf_counter()
    result = f()
    return result, time.perf_counter() - started


def training(norm, dtype, batch=BATCH, products=None, width=64):
    """A training step of a ResNet-18 for CIFAR on a batch of random images, and its arguments.

    `products` is the dtype of convolutions; None is Flax's default, that of the parameters and the norms together.
    """
    model = LinenResNet18(partial(norm, use_running_average=False, dtype=dtype), width, dtype=products)
    x, labels = jax.random.normal(jax.random.key(0), (batch, 32, 32, 3), dtype), jnp.arange(batch) % 10
    variables = jax.jit(model.init)(jax.random.key(1), x)
    optimizer = optax.sgd(0.1, momentum=0.9)

    def step(params, stats, state, x, labels):
        def loss(params):
            logits, updates = model.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
            return losses.mean(), updates["batch_stats"]

        (_, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), new, state

    params = variables["params"]
    return step, (params, variables["batch_stats"], optimizer.init(params), x, labels)


def resnet(dtype, rounds):
    """Seconds per step, bytes of temporaries, seconds to trace and to compile, per library."""
    runs, table = {}, {}
    for name, norm in BATCH_NORMS.items():
        step, args = training(norm, dtype)
        lowered, tracing = _seconds(lambda step=step, args=args: jax.jit(step).lower(*args))
        compiled, compiling = _seconds(lowered.compile)
        memory = compiled.memory_analysis()
        table[name] = {
            "temporaries": memory.temp_size_in_bytes if memory else None,
            "tracing": tracing,
            "compiling": compiling,
        }
        runs[name] = lambda compiled=compiled, args=args: jax.block_until_ready(compiled(*args))
    return race(runs, rounds), table


def grid(rounds):
    """256 configurations of batch norm: one vmapped program, and a loop over calls of a compiled one."""
    x = jax.random.normal(jax.random.key(0), (32, 64))
    params, state = jn.BatchNorm().init(64)
    specs = jn.BatchNorm(epsilon=jnp.geomspace(1e-6, 1e-1, GRID), momentum=jnp.linspace(0.5, 0.99, GRID))
    each = [jax.tree.map(lambda v, i=i: v[i], specs) for i in range(GRID)]

    def train(spec):
        return spec.apply(params, state, x, train=True)

    one = jax.jit(train)
    one(each[0])
    return race(
        {
            "one vmap": waiting(jax.vmap(train), specs),
            "Python loop": lambda: jax.block_until_ready([one(spec) for spec in each]),
        },
        rounds,
    )
