"""The compiled programs: every seed and learning rate of one norm and batch size, trained and evaluated at once."""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, Key

import jaxnorm as jn
from jaxnorm.demo.data import Digits
from jaxnorm.demo.model import VALUES_PER_IMAGE, Classifier


class Run(NamedTuple):
    """A network in training. The programs below take many at once: the leaves then lead with (seeds, rates)."""

    params: Any
    batch_stats: Any
    optimizer: optax.OptState


def start(spec: jn.Spec, seeds: int, rates: Float[ArrayLike, "rates"], steps: int) -> Run:
    """Fresh runs; those that differ in the learning rate alone start from the same weights."""
    # This generator compiles several times faster than the default one.
    weights = [_variables(spec, jax.random.key(seed, impl="rbg")) for seed in range(seeds)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)

    def one(variables, rate):
        params = variables["params"]
        return Run(params, variables.get("batch_stats", {}), _optimizer(rate, steps).init(params))

    over_rates = jax.vmap(one, in_axes=(None, 0))
    return jax.vmap(over_rates, in_axes=(0, None))(stacked, rates)


@partial(jax.jit, static_argnames="steps")
def train(
    spec: jn.Spec,
    runs: Run,
    rates: Float[ArrayLike, "rates"],
    order: Int[Array, "seeds steps batch"],
    span: Int[Array, "2"],
    digits: Digits,
    steps: int,
) -> Run:
    """The runs after the steps from `span[0]` up to `span[1]`, out of `steps` in all."""

    def one(run, rate, order):
        def step(i, run):
            batch = jax.tree.map(lambda array: array[order[i]], digits)
            return _update(spec, run, batch, _optimizer(rate, steps))

        return jax.lax.fori_loop(span[0], span[1], step, run)

    over_rates = jax.vmap(one, in_axes=(0, 0, None))
    return jax.vmap(over_rates, in_axes=(0, None, 0))(runs, rates, order)


@jax.jit
def predict(spec: jn.Spec, runs: Run, images: Float[ArrayLike, "n 8 8 1"]) -> Float[Array, "seeds rates n 10"]:
    """The logits, as in deployment."""

    def one(run) -> Any:
        return Classifier(spec).apply({"params": run.params, "batch_stats": run.batch_stats}, images, train=False)

    return jax.vmap(jax.vmap(one))(runs)


def batch_errors(spec: jn.Spec, runs: Run, batches: Iterable[Float[np.ndarray, "batch 8 8 1"]]) -> list[float]:
    """How far the mean of a batch is from that of all batches, block by block; nothing without running statistics.

    √⟨(μ_b − μ)² / σ²⟩ over the batches and channels of the runs, of which the leaves lead with (seeds,); NaN where all
    of them have diverged.
    """
    if not runs.batch_stats:
        return []

    def step(batch_stats, images):
        def one(params, batch_stats) -> Any:
            variables = {"params": params, "batch_stats": batch_stats}
            return Classifier(spec).apply(variables, images, train=False, mutable="batch_stats")[1]["batch_stats"]

        return jax.vmap(one)(runs.params, batch_stats)

    try:
        found = jn.inspect(step, runs.batch_stats, batches)
    except ValueError:
        # Norms of networks that have diverged see no finite data.
        return [float("nan")] * len(VALUES_PER_IMAGE)
    # A channel that is constant has no σ, and its error is NaN.
    return [float(np.sqrt(np.nanmean(np.square(found[place].batch_mean_error)))) for place in sorted(found)]


@jax.jit
def _variables(spec: jn.Spec, key: Key[Array, ""]) -> Any:
    return Classifier(spec).init(key, jnp.zeros((1, 8, 8, 1)), train=False)


def _optimizer(rate: Float[Array, ""], steps: int) -> optax.GradientTransformation:
    return optax.sgd(optax.cosine_decay_schedule(rate, steps), momentum=0.9)


def _update(spec: jn.Spec, run: Run, batch: Digits, optimizer: optax.GradientTransformation) -> Run:
    def loss(params):
        variables = {"params": params, "batch_stats": run.batch_stats}
        logits, updated = Classifier(spec).apply(variables, batch.images, train=True, mutable="batch_stats")
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        return jnp.mean(losses), updated.get("batch_stats", {})

    gradients, batch_stats = jax.grad(loss, has_aux=True)(run.params)
    updates, state = optimizer.update(gradients, run.optimizer)
    return Run(optax.apply_updates(run.params, updates), batch_stats, state)
