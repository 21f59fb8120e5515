"""One batch on many devices: the result is that of the batch on one, however it is cut and by whatever it is mapped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import STATE, WAYS, WEIGHTS, WHOLE, G, X, close, mesh, step
from flax import nnx
from jax.sharding import PartitionSpec as P

import jaxnorm as jn

LAYOUTS = [
    *((way, {"batch": 8}) for way in WAYS),
    *(("shard_map", {"batch": n}) for n in (1, 2, 4)),
    *((way, {"host": 2, "device": 4}) for way in ("shard_map", "shard_map without vma", "vmap")),
]


@pytest.mark.parametrize(("way", "axes"), LAYOUTS, ids=str)
def test_shards_equal_the_whole_batch(way, axes):
    names = tuple(axes) if len(axes) > 1 else "batch"
    close(WAYS[way](step(jn.BatchNorm(axis_name=names)), axes)(X, WEIGHTS, G), WHOLE)


def test_against_numpy():
    x, w = np.where(WEIGHTS > 0, X, 0).astype(float), np.broadcast_to(WEIGHTS, X.shape)
    mean = np.average(x, (0, 1), w)
    for found in WHOLE[2][1:]:
        np.testing.assert_allclose(found.mean, mean, rtol=2**-23)
        np.testing.assert_allclose(found.var, np.average((x - mean) ** 2, (0, 1), w), rtol=1e-5)


def test_a_submesh_shares_among_its_own_devices():
    """Four hosts of two devices, statistics by host."""
    axes = {"host": 4, "device": 2}
    spec = jn.BatchNorm(axis_name="device")
    each = lambda x, w: jax.tree.map(lambda v: v[None], spec.apply(jn.Affine(), STATE, x, train=True, where=w)[1])
    run = jax.shard_map(each, mesh=mesh(**axes), in_specs=P(("host", "device")), out_specs=P("host"))
    found = jax.jit(run)(X, WEIGHTS)
    for host, (x, w) in enumerate(zip(np.split(X, 4), np.split(WEIGHTS, 4), strict=True)):
        _, want = jn.BatchNorm().apply(jn.Affine(), STATE, x, train=True, where=w)
        for a, b in zip(found[:2], want[:2], strict=True):
            np.testing.assert_allclose(a[host], b, rtol=1e-5)


@pytest.mark.parametrize(("devices", "ghost", "parts"), [(1, 4, 2), (2, 2, 4), (4, 8, 1), (8, None, 2), (4, 8, 2)])
def test_any_partition_gives_the_same_statistics(devices, ghost, parts):
    """Into micro-batches, these over devices, and into ghosts; as one update, and as population statistics."""
    spec = jn.BatchNorm(axis_name="batch", virtual_batch_size=ghost)
    run = lambda state, batch: spec.apply(jn.Affine(), state, batch[0], train=True, where=batch[1])[1]
    run = jax.jit(jax.shard_map(run, mesh=mesh(batch=devices), in_specs=(P(), P("batch")), out_specs=P()))
    batches = list(zip(np.split(X, parts), np.split(WEIGHTS, parts), strict=True))
    state = jn.accumulate(STATE)
    for batch in batches:
        state = run(state, batch)
    moments = WHOLE[2][1]
    updated, exact = jn.commit(state), jn.recalibrate(run, STATE, batches)
    for a, b in zip(updated[:2], WHOLE[2][0][:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
    np.testing.assert_allclose(exact.mean, moments.mean, rtol=2**-22)
    np.testing.assert_allclose(exact.var, moments.var, rtol=1e-5)
    assert exact.weight_sum is None


@pytest.mark.parametrize("layer", ["linen.Norm", "linen.BatchNorm", "nnx.Norm", "nnx.BatchNorm"])
def test_layers_share_statistics(layer):
    """The running mean and variance after a batch, 0.99 of (0, 1) and 0.01 of the batch."""
    library, kind = layer.split(".")
    module = getattr(getattr(jn, library), kind)

    def run(x, where):
        where = {"where": where} if kind == "Norm" else {"mask": where}
        norm = jn.BatchNorm(axis_name="batch")
        if library == "nnx":
            layer = module(norm, 4) if kind == "Norm" else module(4, axis_name="batch", rngs=nnx.Rngs(0))
            return layer(x, **where), {"mean": layer.mean[...], "var": layer.var[...]}
        layer = module(norm, train=True) if kind == "Norm" else module(False, axis_name="batch")
        y, updates = layer.apply(layer.init(jax.random.key(0), x), x, mutable=["batch_stats"], **where)
        return y, updates["batch_stats"]

    split = P("batch")
    y, stats = jax.jit(jax.shard_map(run, mesh=mesh(batch=8), in_specs=split, out_specs=(split, P())))(X, WEIGHTS)
    np.testing.assert_allclose(np.where(WEIGHTS > 0, y, 0), WHOLE[0], rtol=2e-5, atol=2e-6)
    for name in ("mean", "var"):
        np.testing.assert_allclose(stats[name], getattr(WHOLE[2][0], name), rtol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_complex_shards(masked):
    x = jax.random.normal(jax.random.key(0), (4, 8, 3), jnp.complex64) + (2 - 1j)
    where = jax.random.uniform(jax.random.key(1), (4, 8, 1)) > 0.3 if masked else None
    got = jax.vmap(lambda x, w: jn.moments(x, 0, where=w, axis_name="shard"), axis_name="shard")(x, where)
    want = jn.moments(x, (0, 1), where=where)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-5), got, want)
