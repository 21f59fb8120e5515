"""Ghost batches: each is a batch of its own, on whatever devices it lies."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import STATE, WAYS, WEIGHTS, WHOLE, G, X, close, mesh, rng, step
from jax.sharding import PartitionSpec as P

import jaxnorm as jn

GHOSTS = [
    (2, "shard_map", {"batch": 4}),  # within a share
    (4, "shard_map", {"batch": 4}),
    (8, "shard_map", {"batch": 4}),  # over two devices
    (8, "shard_map without vma", {"batch": 8}),
    (8, "vmap", {"batch": 8}),
    (8, "pmap", {"batch": 8}),
    (8, "shard_map", {"host": 2, "device": 4}),
    (16, "shard_map", {"batch": 8}),  # all of it
    (2, "shard_map without vma", {"batch": 2}),
    (1, "vmap", {"batch": 2}),
]


alone = jax.jit(step(jn.BatchNorm()))


def of_ghosts(size, x, where, g):
    """The definition: each on its own, and running statistics of the whole."""
    parts = [alone(*(v[i : i + size] for v in (x, where, g))) for i in range(0, len(x), size)]
    y, dx, _ = zip(*parts, strict=True)
    return np.concatenate(y), np.concatenate(dx), WHOLE[2]


@pytest.mark.once
@pytest.mark.parametrize(("size", "way", "axes"), GHOSTS, ids=[f"{v} {w} {a}" for v, w, a in GHOSTS])
def test_ghosts_are_batches_of_their_own(size, way, axes):
    names = tuple(axes) if len(axes) > 1 else "batch"
    spec = jn.BatchNorm(virtual_batch_size=size, axis_name=names)
    close(WAYS[way](step(spec), axes)(X, WEIGHTS, G), of_ghosts(size, X, WEIGHTS, G))


@pytest.mark.parametrize(("size", "devices"), [(6, 4), (4, 8), (12, 2)])
def test_ghosts_that_no_share_is_a_multiple_of(size, devices):
    """24 examples: 6 on each of 4 devices, 3 of 8, 12 of 2."""
    x = np.concatenate([X, X[8:] * 2])
    args = x, np.concatenate([WEIGHTS, WEIGHTS[8:]]), np.concatenate([G, G[8:]])
    got = WAYS["shard_map"](step(jn.BatchNorm(virtual_batch_size=size, axis_name="batch")), {"batch": devices})(*args)
    want = of_ghosts(size, *args)
    close(got, (*want[:2], alone(*args)[2]))


@pytest.mark.parametrize("channel_axis", [1, -1])
def test_ghosts_on_one_device(channel_axis):
    """With a scale per example, in both layouts; evaluation knows no ghosts."""
    x = np.moveaxis(rng.standard_normal((8, 5, 3)).astype(np.float32), -1, channel_axis)
    scale = rng.random((8, *(3 if a == channel_axis % 3 else 1 for a in (1, 2)))).astype(np.float32)
    ghosts, whole = (jn.BatchNorm(virtual_batch_size=n, channel_axis=channel_axis) for n in (2, None))
    _, state = whole.init(3)
    y, new = ghosts.apply(jn.Affine(scale), state, x, train=True)
    want = [whole.apply(jn.Affine(scale[i : i + 2]), state, x[i : i + 2], train=True)[0] for i in range(0, 8, 2)]
    np.testing.assert_allclose(y, np.concatenate(want), rtol=1e-5, atol=1e-6)
    _, expected = whole.apply(jn.Affine(scale), state, x, train=True)
    chex.assert_trees_all_close(new, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(*(spec.apply(jn.Affine(), new, x[:7], train=False)[0] for spec in (ghosts, whole)))


@pytest.mark.parametrize(
    ("spec", "shape", "words"),
    [
        (
            jn.BatchNorm(virtual_batch_size=32),
            (100, 4),
            "size=32 does not divide the batch of 100 examples",
        ),
        (jn.BatchNorm(virtual_batch_size=0), (8, 4), "virtual_batch_size=0 is not a positive int"),
        (jn.BatchNorm(virtual_batch_size=4, channel_axis=0), (4, 8), "axis 0 of x, of shape .4, 8., but that holds"),
    ],
)
def test_ghosts_that_do_not_fit(spec, shape, words):
    with pytest.raises(ValueError, match=words):
        spec.apply(*spec.init(4), jnp.ones(shape), train=True)
    y, _ = spec.apply(*spec.init(4), jnp.ones(shape), train=False)
    assert y.shape == shape


def test_ghosts_that_do_not_fit_all_devices():
    spec = jn.BatchNorm(virtual_batch_size=3, axis_name="batch")
    with pytest.raises(ValueError, match=r"=3 does not divide the batch of 16 examples \(8 devices with 2 each\)"):
        WAYS["vmap"](step(spec), {"batch": 8})(X, WEIGHTS, G)


@pytest.mark.parametrize("known", [0.0, 1e8, np.nan])
@pytest.mark.parametrize("size", [2, 8])
def test_a_running_mean_that_is_far_costs_ghosts_no_digits(size, known):
    x = (1e4 + np.random.default_rng(1).normal(size=(16, 3, 4))).astype(np.float32)
    spec = jn.BatchNorm(momentum=0.0, virtual_batch_size=size, axis_name="batch")
    state = STATE._replace(mean=jnp.full(4, known))
    run = lambda x: spec.apply(jn.Affine(), state, x, train=True)[1]
    _, var, _ = jax.jit(jax.shard_map(run, mesh=mesh(batch=4), in_specs=P("batch"), out_specs=P()))(x)
    np.testing.assert_allclose(var, x.astype(float).var((0, 1)), rtol=1e-5)
