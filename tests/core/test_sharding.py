"""Sharded arrays under plain jit, on meshes with automatic and explicit axes."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import STATE, WEIGHTS, X, mesh
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn


def test_channels_may_be_sharded_where_their_count_is_not():
    """The number of data is the same on all devices; how many updates a channel had lies with the channel."""
    spec, x = jn.BatchNorm(momentum=None, axis_name="batch"), np.nan_to_num(X)
    share = jn.RunningStats(P("model"), P("model"), P("model"))
    steps = lambda state, x, w: jax.lax.scan(
        lambda s, w: spec.apply(jn.Affine(), s, x, train=True, where=w)[::-1], state, w
    )[0]
    places = share, P("batch", None, "model"), P(None, "batch", None, "model")
    steps = jax.jit(jax.shard_map(steps, mesh=mesh(batch=2, model=4), in_specs=places, out_specs=share))
    where = np.stack([np.ones(X.shape, bool), np.zeros(X.shape, bool), np.ones(X.shape, bool)])
    where[2, ..., 1:] = False
    mean, _, updates = steps(spec.init(4)[1], x, where)
    np.testing.assert_allclose(mean, x.mean((0, 1)), rtol=1e-5)
    np.testing.assert_array_equal(updates, [2, 1, 1, 1])


SPECS = {
    "batch": jn.BatchNorm(),
    "ghosts of 2": jn.BatchNorm(virtual_batch_size=2),
    "ghosts of 8": jn.BatchNorm(virtual_batch_size=8),
    "instance": jn.InstanceNorm(),
    "group": jn.GroupNorm(groups=2),
    "one group": jn.GroupNorm(groups=1),
    "layer": jn.LayerNorm(),
    "rms": jn.RMSNorm(),
}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("where", [P("batch"), P("batch", None, "model"), P(("batch", "model"))], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_sharded_arrays_need_nothing(name, where, kind):
    """The batch, or the channels, too, over a mesh; parameters and state on all devices."""
    spec = SPECS[name]
    params, state = spec.init(4)

    def run(x, w, params, state):
        norm = lambda x, params: spec.apply(params, state, x, train=True, where=w)
        y, pull, new = jax.vjp(norm, x, params, has_aux=True)
        return jnp.where(w > 0, y, 0), new, pull(jnp.where(w > 0, jnp.cos(y), 0))

    x = X - 1e4
    want = jax.jit(run)(x, WEIGHTS, params, state)
    m = mesh(kind, batch=4, model=2)
    with jax.set_mesh(m):
        put = lambda v, spec: jax.device_put(v, NamedSharding(m, spec))
        shared = jax.tree.map(lambda v: put(v, P()), (params, state))
        got = jax.jit(run)(put(x, where), put(WEIGHTS, P(where[0])), *shared)
        assert got[0].sharding.is_equivalent_to(NamedSharding(m, where), 3) or kind is AxisType.Auto
        if kind is AxisType.Explicit:
            assert jax.tree.map(jax.typeof, got[1]) == jax.tree.map(jax.typeof, shared[1])
    chex.assert_trees_all_close(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("ghost", [None, 2, 8])
@pytest.mark.parametrize("masked", [False, True])
def test_channels_may_be_sharded_beside_a_named_axis(masked, ghost, kind):
    """Named are the devices of the batch; the other axis of the mesh, along the channels, is not."""
    spec, m = jn.BatchNorm(axis_name="batch", virtual_batch_size=ghost), mesh(kind, batch=2, model=2)
    x, where = np.nan_to_num(X[:8] - 1e4), WEIGHTS[:8] + 0.5 if masked else None

    def run(x, where):
        norm = lambda x: spec.apply(jn.Affine(), STATE, x, train=True, where=where)
        y, pull, new = jax.vjp(norm, x, has_aux=True)
        start = jn.Moments.zeros(4)
        return y, pull(jnp.cos(y))[0], (new, jn.merge(start, jn.moments(x, (0, 1), where=where, axis_name="batch")))

    with jax.set_mesh(m):
        put = lambda v, spec: jax.device_put(v, NamedSharding(m, spec))
        args = put(x, P("batch", None, "model")), None if where is None else put(where, P("batch"))
        split = P("batch")
        over = jax.shard_map(run, in_specs=split, out_specs=(split, split, P()), axis_names={"batch"})
        got = jax.device_get(jax.jit(over)(*args))
    spec = jn.BatchNorm(virtual_batch_size=ghost)
    y, pull, new = jax.vjp(lambda x: spec.apply(jn.Affine(), STATE, x, train=True, where=where), x, has_aux=True)
    want = y, pull(jnp.cos(y))[0], (new, jn.moments(x, (0, 1), where=where))
    chex.assert_trees_all_close(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["instance", "group", "layer", "rms"])
def test_features_and_positions_may_be_sharded(name):
    """Under vmap with a name, the statistics are those of all shards together."""
    spec = SPECS[name]
    x = jax.random.normal(jax.random.key(0), (2, 8, 4, 16)) + 2
    axis = 3 if name in ("layer", "rms") else 1
    shards = jnp.stack(jnp.split(x, 4, axis))
    together = dataclasses.replace(spec, axis_name="shard")
    ys = jax.vmap(lambda x: together.apply(jn.Affine(), None, x, train=True)[0], axis_name="shard")(shards)
    want = spec.apply(jn.Affine(), None, x, train=True)[0]
    np.testing.assert_allclose(jnp.concatenate(ys, axis), want, rtol=1e-5, atol=2e-6)
