"""What is kept for the backward pass, how often data are reduced, and one collective each way: exact figures."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxnorm as jn

KEPT = {
    "batch": (jn.BatchNorm(), (32, 28, 28, 64), 1.01),
    "instance": (jn.InstanceNorm(), (32, 28, 28, 64), 1.01),
    "group": (jn.GroupNorm(groups=8), (32, 14, 14, 64), 1.01),
    "layer": (jn.LayerNorm(), (512, 768), 1.02),
    "rms": (jn.RMSNorm(), (512, 768), 1.02),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_bytes_kept_for_the_backward_pass(name, dtype, wrap):
    spec, shape, most = KEPT[name]
    params, state = spec.init(shape[-1])
    x = jax.random.normal(jax.random.key(0), shape, dtype)
    apply = wrap(lambda x, params: spec.apply(params, state, x, train=True)[0])
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(jax.vjp(apply, x, params)[1]))
    assert kept <= most * x.nbytes


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("name", KEPT)
def test_drop_ins_keep_no_more(name, dtype):
    """Also where Flax's promotion makes y wider than x."""
    spec, shape, most = KEPT[name]
    module = getattr(jn.linen, type(spec).__name__)(dtype=dtype)
    module = module.clone(num_groups=spec.groups) if name == "group" else module
    module = module.clone(use_running_average=False) if name == "batch" else module
    x = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        variables = module.init(jax.random.key(0), x)
        apply = lambda x, p: module.apply(variables | {"params": p}, x, mutable=["batch_stats"])[0]
        y, pull = jax.vjp(apply, x, variables["params"])
    assert y.dtype == (dtype or jnp.float32)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(pull)) <= most * x.nbytes


@pytest.mark.parametrize("name", KEPT)
def test_two_reductions_of_data_each_way(name):
    spec, shape, _ = KEPT[name]
    shape = (8, *shape[1:])
    params, state = spec.init(shape[-1])
    x = jnp.ones(shape)

    def reductions(f, *args):
        jaxpr = jax.make_jaxpr(f)(*args)
        found = re.findall(r"reduce_sum\[\s*axes=.*?\] (\w+)", str(jaxpr))
        full = {m for m, s in re.findall(r"(\w+):f32\[([\d,]+)\]", str(jaxpr)) if s == ",".join(map(str, shape))}
        return sum(f in full for f in found)

    _, pull = jax.vjp(lambda x, p: spec.apply(p, state, x, train=True)[0], x, params)
    # Per row Σ g and Σ x̂ g (RMS: the latter alone), per feature dbias and dscale; otherwise one pair is both.
    expected = {"layer": 4, "rms": 2}.get(name, 2)
    assert reductions(pull, x) <= expected


def mesh(n=4):
    return jax.make_mesh((n,), ("batch",), devices=jax.devices()[:n], axis_types=(AxisType.Auto,))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_shards_equal_the_global_batch(check_vma, masked):
    x = jax.random.normal(jax.random.key(0), (16, 3, 4)) + 3
    where = (
        (jax.random.uniform(jax.random.key(1), (16, 3, 1)) > 0.3).at[:4].set(False)
        if masked
        else jnp.ones((16, 1, 1), bool)
    )
    x = jnp.where(where, x, jnp.nan)
    params, state = jn.BatchNorm().init(4)
    g = jnp.where(where, jax.random.normal(jax.random.key(2), x.shape), 0)

    def run(spec):
        def step(x, where, g, params, state):
            loss = lambda x: (jnp.where(where, g * spec.apply(params, state, x, train=True, where=where)[0], 0)).sum()
            new = spec.apply(params, state, x, train=True, where=where)[1]
            return jnp.where(where, spec.apply(params, state, x, train=True, where=where)[0], 0), new, jax.grad(loss)(x)

        return step

    shard = P("batch")
    sharded = jax.jit(
        jax.shard_map(
            run(jn.BatchNorm(axis_name="batch")),
            mesh=mesh(),
            in_specs=(shard, shard, shard, P(), P()),
            out_specs=(shard, P(), shard),
            check_vma=check_vma,
        )
    )
    got = sharded(x, where, g, params, state)
    want = jax.jit(run(jn.BatchNorm()))(x, where, g, params, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), got, want)


@pytest.mark.parametrize("name", [n for n in KEPT if n != "batch"])
def test_features_and_positions_may_be_sharded(name):
    """Under vmap with a name, the statistics are those of all shards together."""
    spec, _, _ = KEPT[name]
    x = jax.random.normal(jax.random.key(0), (2, 8, 4, 64)) + 2
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


def test_one_collective_forward_and_one_in_the_conditional():
    spec = jn.BatchNorm(axis_name="batch")
    params, state = spec.init(4)
    step = jax.shard_map(
        lambda x: spec.apply(params, state, x, train=True),
        mesh=mesh(),
        in_specs=P("batch"),
        out_specs=(P("batch"), P()),
    )
    text = jax.jit(step).lower(jnp.ones((16, 4))).compile().as_text()
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == 2
    assert " conditional(" in text


@pytest.mark.parametrize("name", KEPT)
def test_explicitly_sharded_batches_need_nothing(name):
    spec, _, _ = KEPT[name]
    params, state = spec.init(64)
    x = np.random.default_rng(0).standard_normal((8, 4, 64)).astype(np.float32)
    apply = jax.jit(lambda x: spec.apply(params, state, x, train=True)[0])
    with jax.set_mesh(jax.make_mesh((4,), ("batch",), devices=jax.devices()[:4], axis_types=(AxisType.Explicit,))):
        y = apply(jax.device_put(x, P("batch")))
        assert jax.typeof(y).sharding.spec[0] == "batch"
    np.testing.assert_allclose(y, apply(x), rtol=1e-5, atol=2e-6)
