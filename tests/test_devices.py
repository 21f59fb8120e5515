"""One batch on many devices: the result is that of the batch on one, however it is cut and by whatever it is mapped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm as jn

rng = np.random.default_rng(0)
# Means of 1e4, examples that differ, weights that are uneven; the first two of eight devices have nothing to include.
X = (rng.standard_normal((16, 3, 4)) + 3 * rng.standard_normal((16, 1, 4)) + 1e4).astype(np.float32)
WEIGHTS = (rng.random((16, 3, 1)) * (rng.random((16, 3, 1)) > 0.3)).astype(np.float32)
WEIGHTS[:4] = 0
X = np.where(WEIGHTS > 0, X, np.nan).astype(np.float32)
G = np.where(WEIGHTS > 0, rng.standard_normal(X.shape), 0).astype(np.float32)
_, STATE = jn.BatchNorm().init(4)


def mesh(kind=AxisType.Auto, **sizes):
    devices = jax.devices()[: np.prod([*sizes.values()])]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), devices=devices, axis_types=(kind,) * len(sizes))


def over_shards(f, axes, check_vma):
    """Data are split, all else is shared."""
    split = P(tuple(axes))
    return jax.jit(
        jax.shard_map(f, mesh=mesh(**axes), in_specs=split, out_specs=(split, split, P()), check_vma=check_vma)
    )


def over_a_map(f, axes, transform):
    """The same by vmap or pmap, one within the other."""
    for name in reversed(axes):
        f = transform(f, axis_name=name)

    def run(*args):
        y, dx, shared = f(*(np.reshape(v, (*axes.values(), -1, *v.shape[1:])) for v in args))
        first = jax.tree.map(lambda v: v[(0,) * len(axes)], shared)
        return *(np.reshape(v, (-1, *v.shape[len(axes) + 1 :])) for v in (y, dx)), first

    return run


WAYS = {
    "shard_map": lambda f, axes: over_shards(f, axes, True),
    "shard_map without vma": lambda f, axes: over_shards(f, axes, False),
    "vmap": lambda f, axes: over_a_map(f, axes, jax.vmap),
    "pmap": lambda f, axes: over_a_map(f, axes, jax.pmap),
}


def step(spec):
    """y where it is defined, the gradient of x, and what is the same on all devices."""

    def apply(x, where, g):
        norm = lambda x: spec.apply(jn.Affine(), STATE, x, train=True, where=where)
        y, pull, state = jax.vjp(norm, x, has_aux=True)
        moments = jn.moments(x, (0, 1), where=where, axis_name=spec.axis_name)
        local = jn.moments(x, (0, 1), where=where)
        merged = local if spec.axis_name is None else jn.merge(local, axis_name=spec.axis_name)
        return jnp.where(where > 0, y, 0), pull(g)[0], (state, moments, merged)

    return apply


def close(got, want):
    (y, dx, (state, moments, merged)), (y_, dx_, (state_, moments_, _)) = got, want
    np.testing.assert_allclose(y, y_, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(dx, dx_, rtol=1e-4, atol=2e-6)
    for found, wanted in ((moments, moments_), (merged, moments_)):
        for a, b in zip(found[:3], wanted[:3], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
    # A mean of 1e4 in a float32, as ghosts and devices merge it, is off by up to 5e-4.
    for a, b in zip(state[:2], state_[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


WHOLE = jax.jit(step(jn.BatchNorm()))(X, WEIGHTS, G)
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


def of_ghosts(size, x, where, g):
    """The definition: each on its own, and running statistics of the whole."""
    parts = [step(jn.BatchNorm())(*(v[i : i + size] for v in (x, where, g))) for i in range(0, len(x), size)]
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
    close(got, (*want[:2], jax.jit(step(jn.BatchNorm()))(*args)[2]))


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
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), new, expected)
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


@pytest.mark.parametrize("known", [0.0, 1e8, np.nan])
@pytest.mark.parametrize("size", [2, 8])
def test_a_running_mean_that_is_far_costs_ghosts_no_digits(size, known):
    x = (1e4 + np.random.default_rng(1).normal(size=(16, 3, 4))).astype(np.float32)
    spec = jn.BatchNorm(momentum=0.0, virtual_batch_size=size, axis_name="batch")
    state = STATE._replace(mean=jnp.full(4, known))
    run = lambda x: spec.apply(jn.Affine(), state, x, train=True)[1]
    _, var, _ = jax.jit(jax.shard_map(run, mesh=mesh(batch=4), in_specs=P("batch"), out_specs=P()))(x)
    np.testing.assert_allclose(var, x.astype(float).var((0, 1)), rtol=1e-5)


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
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)


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
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)


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


@pytest.mark.parametrize("masked", [True, False])
def test_complex_shards(masked):
    x = jax.random.normal(jax.random.key(0), (4, 8, 3), jnp.complex64) + (2 - 1j)
    where = jax.random.uniform(jax.random.key(1), (4, 8, 1)) > 0.3 if masked else None
    got = jax.vmap(lambda x, w: jn.moments(x, 0, where=w, axis_name="shard"), axis_name="shard")(x, where)
    want = jn.moments(x, (0, 1), where=where)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-5), got, want)
