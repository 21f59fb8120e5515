"""The parts of a batch make one update, replicas are merged: any cut will do."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from parts import BN, MEAN, PARAMS, STATE, VAR, WHERE, X, close, cuts, masks, net, part_of

import jaxnorm as jn


@given(cuts)
def test_any_parts_make_the_update_of_the_whole(parts):
    state = jn.accumulate(STATE)
    for where in masks(parts):
        _, state = part_of(BN, state, X, where)
    close(jn.commit(state), 0.1 * MEAN, 0.9 + 0.1 * VAR, 1)


@pytest.mark.parametrize("momentum", [0.9, None])
def test_updates_follow_one_another(momentum):
    """As of whole batches, also by the number of updates and with ddof."""
    spec = jn.BatchNorm(momentum=momentum, ddof=1)
    state, want = spec.init(3)[1], spec.init(3)[1]
    for scale in (1, 2):
        state = jn.accumulate(state)
        for rows in (slice(7), slice(7, 24)):
            _, state = part_of(spec, state, scale * X[rows], WHERE[rows])
        state = jn.commit(state)
        _, want = part_of(spec, want, scale * X, WHERE)
    close(state, want.mean, want.var, weight=want.weight_sum)


def test_parts_are_a_scan_and_steps_of_the_optimizer_are_updates():
    """optax.MultiSteps says when a whole batch begins; parts of 6 in a scan, two updates."""
    optimizer = optax.MultiSteps(optax.sgd(0.1), 2)

    def step(carry, x):
        params, state, opt = carry
        loss = lambda p: (lambda y, s: (jnp.sin(y).sum(), s))(*BN.apply(p, state, x, train=True))
        grads, state = jax.grad(loss, has_aux=True)(params)
        updates, opt = optimizer.update(grads, opt, params)
        return (optax.apply_updates(params, updates), jn.accumulate(state, optimizer.has_updated(opt)), opt), state

    carry = PARAMS, jn.accumulate(STATE), optimizer.init(PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        (_, state, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, X.reshape(4, 6, 5, 3)))(carry)
    want = STATE
    for half in (X[:12], X[12:]):
        _, want = part_of(BN, want, half, np.ones((12, 5, 1), bool))
    close(jn.commit(state), want.mean, want.var, 2)


def test_evaluation_meanwhile_uses_what_is_known():
    _, state = part_of(BN, jn.accumulate(STATE), X, WHERE)
    y, same = BN.apply(PARAMS, state, X, train=False)
    want, _ = BN.apply(PARAMS, jn.commit(state), X, train=False)
    np.testing.assert_array_equal(y, want)
    assert same is state


def test_a_part_with_nan_is_left_out():
    state = jn.accumulate(STATE)
    for x in (X, jnp.full_like(X, jnp.nan).at[..., 2].set(X[..., 2])):
        _, state = part_of(BN, state, x, WHERE)
    close(jn.commit(state), 0.1 * MEAN, 0.9 + 0.1 * VAR, 1)


def test_accumulating_in_linen():
    model, variables = net()
    rngs = {"dropout": jax.random.key(1)}

    @jax.jit
    def part(stats, x, where):
        now = {**variables, "batch_stats": stats}
        return model.apply(now, x, where, train=True, rngs=rngs, mutable="batch_stats")[1]

    stats = jn.accumulate(variables["batch_stats"])
    for rows in (slice(5), slice(5, 24)):
        stats = part(stats, X[rows], WHERE[rows])["batch_stats"]
    stats = jn.commit(stats)
    assert jax.tree.structure(stats) == jax.tree.structure(variables["batch_stats"])
    first, stacked = stats["BatchNorm_0"], stats["Norm_0"]
    close(jn.RunningStats(first["mean"], first["var"]), 0.1 * MEAN, 0.9 + 0.1 * VAR)
    # What a layer gives to the next is normalized: 0.9 of the old mean, and 0.1 of 0.
    np.testing.assert_allclose(stacked["mean"], 0, atol=1e-2)


def test_parts_may_be_donated():
    """And moments: no two arrays of a state are one."""
    part = jax.jit(lambda state, x: BN.apply(PARAMS, state, x, train=True)[1], donate_argnums=0)
    state = jn.accumulate(BN.init(3)[1])
    for rows in (slice(5), slice(5, 24)):
        state = part(state, X[rows])
    close(jn.commit(state), 0.1 * X.astype(float).mean((0, 1)), 0.9 + 0.1 * X.astype(float).var((0, 1)))
    add = jax.jit(lambda total, x: jn.merge(total, jn.moments(x, (0, 1))), donate_argnums=0)
    np.testing.assert_array_equal(add(jn.Moments.zeros(3), X).count, 120)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.complex64])
def test_ghosts_and_parts_in_any_dtype(dtype):
    """The state keeps its types, for a scan; statistics of complex data, too."""
    spec = jn.BatchNorm(momentum=0.9, virtual_batch_size=4)
    params, state = spec.init(3, jnp.complex64 if dtype == jnp.complex64 else None)
    x = jnp.asarray(X - np.array([0, 1e4, -20], np.float32)).astype(dtype)
    x = x * jnp.exp(jnp.asarray(1j * X[..., :1], dtype)) if dtype == jnp.complex64 else x
    both = jnp.stack([x[:12], x[12:]])
    run = lambda state, x: (spec.apply(params, state, x, train=True)[1], None)
    state = jn.commit(jax.jit(lambda s: jax.lax.scan(run, s, both)[0])(jn.accumulate(state)))
    exact = np.asarray(x).astype(np.complex128)
    np.testing.assert_allclose(state.mean, 0.1 * exact.mean((0, 1)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.var, 0.9 + 0.1 * exact.var((0, 1)), rtol=1e-5)


def test_replicas_merge_with_the_variance_of_their_means():
    spec = jn.BatchNorm(momentum=None)
    states = [spec.init(3)[1]]
    for rows in (slice(12), slice(12, 24)):
        states.append(part_of(spec, states[0], X[rows], np.ones((12, 5, 1), bool))[1])
    # Means of 1e4 were rounded when they became running ones.
    rounded = 2e-4
    mean, var = X.mean((0, 1), dtype=float), X.var((0, 1), dtype=float)
    # One of the three knows nothing, and the others had an update each.
    close(jn.merge_running(*states), mean, var, rounded, 2 / 3)
    stacked = {"norm": {"mean": jnp.stack([s.mean for s in states[1:]], 1)}, "else": jnp.ones(2)}
    stacked["norm"]["var"] = jnp.stack([s.var for s in states[1:]], 1)
    merged = jn.merge_running(stacked, axis=1)
    close(jn.RunningStats(**merged["norm"]), mean, var, rounded)
    shared = jax.vmap(lambda s: jn.merge_running(s, axis_name="host"), axis_name="host")(
        jax.tree.map(lambda *v: jnp.stack(v), *states)
    )
    close(jax.tree.map(lambda v: v[1], shared), mean, var, rounded, 2 / 3)
    chex.assert_trees_all_equal(jn.merge_running(STATE, STATE), STATE)
    together = jax.tree.map(lambda *v: jnp.stack(v), *states[1:])
    for axis in (0, -2):
        close(jn.merge_running(together, axis=axis), mean, var, rounded, 1)


@pytest.mark.parametrize("weight", [3e38, 1e-30])
def test_weights_near_the_ends_of_floats(weight):
    """The sum of the first is infinite: it changes nothing. Small ones count as all weights do."""
    where = jnp.full((24, 5, 1), weight, jnp.float32)
    if weight > 1:
        for x in (X, 0 * X):
            chex.assert_trees_all_equal(part_of(BN, STATE, x, where)[1], STATE)
    else:
        close(
            part_of(BN, STATE, X, where)[1],
            0.1 * X.astype(float).mean((0, 1)),
            0.9 + 0.1 * X.astype(float).var((0, 1)),
            1,
        )


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: jn.merge_running(), TypeError, "merge_running: there is nothing to merge"),
        (lambda: jn.merge_running(STATE, STATE, axis=0), ValueError, "axis=0 goes with one"),
        (lambda: jn.merge_running(STATE, axis=5), ValueError, "axis=5 is out of range: the mean has 1 dim"),
        (
            lambda: jn.merge_running(STATE, STATE, weights=[1, 2, 3]),
            ValueError,
            r"weights has shape \(3,\), and there are 2 states",
        ),
        (lambda: jn.recalibrate(lambda s, x: s, STATE, []), ValueError, "there are no batches. An iterator"),
        (lambda: jn.recalibrate(lambda s, x: s, STATE, [X]), ValueError, "no data came to the state"),
        (lambda: jn.recalibrate(lambda s, x: (x, s), STATE, [X]), TypeError, "step gave a tuple of another structure"),
        (
            lambda: jax.eval_shape(lambda s: jn.recalibrate(lambda s, x: s, s, [X]), STATE),
            TypeError,
            "state is traced. Call it outside of jit",
        ),
        (lambda: jn.linen.recalibrate(nn.Dense(3), {"params": {}}, [X]), ValueError, "linen, they are batch_stats"),
        (lambda: jn.recalibrate(lambda s, x: s, {"layer": None}, [X]), ValueError, "no running statistics of jaxnorm"),
        (lambda: jn.nnx.recalibrate(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), [X]), ValueError, "no running statistics of"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()


@jax.numpy_dtype_promotion("standard")  # as Flax wants it
@pytest.mark.parametrize("layer", ["linen", "nnx"])
def test_drop_ins_for_complex_data(layer):
    """Whose state is made before it is known that the data are complex."""
    x = X[:, 0] + 2j * X[:, 1]
    if layer == "linen":
        norm = jn.linen.BatchNorm(use_running_average=False, momentum=0.0)
        variables = norm.init(jax.random.key(0), x)
        stats = jn.accumulate(variables["batch_stats"])
        for part in (x[:5], x[5:]):
            _, updates = norm.apply({**variables, "batch_stats": stats}, part, mutable=["batch_stats"])
            stats = updates["batch_stats"]
        found = [jn.commit(stats), jn.linen.recalibrate(norm, variables, [x[:5], x[5:]])["batch_stats"]]
    else:
        norm, other = (jn.nnx.BatchNorm(3, momentum=0.0, rngs=nnx.Rngs(0)) for _ in range(2))
        jn.nnx.accumulate(norm)
        for part in (x[:5], x[5:]):
            norm(part)
        jn.nnx.commit(norm)
        jn.nnx.recalibrate(other, [x[:5], x[5:]])
        found = [{"mean": n.mean[...], "var": n.var[...]} for n in (norm, other)]
    for stats in found:
        np.testing.assert_allclose(stats["mean"], x.astype(complex).mean(0), rtol=1e-5)
        np.testing.assert_allclose(stats["var"], x.astype(complex).var(0), rtol=1e-5)


def test_replicas_stacked_behind_channels_and_replicas_without_updates():
    means = jnp.array([[0.0, 2.0], [1.0, 5.0], [jnp.nan, 3.0]])
    stacked = jn.RunningStats(means, jnp.ones((3, 2)), jnp.broadcast_to(jnp.array([0.0, 4.0]), (3, 2)))
    for axis in (1, -1):
        close(jn.merge_running(stacked, axis=axis), means[:, 1], 1, weight=2)
    narrow = jn.RunningStats(jnp.zeros((2, 3), jnp.float16), jnp.ones((2, 3), jnp.float16), jnp.zeros((2, 3)))
    narrow = jn.merge_running(narrow._replace(mean=narrow.mean.at[1].set(2)), axis=0)
    close(narrow, 1, 2)
    assert narrow.mean.dtype == narrow.var.dtype == jnp.float16
