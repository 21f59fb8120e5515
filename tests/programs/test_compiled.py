"""What is kept for the backward pass, how often data are reduced, and one collective each way: exact figures."""

import re

import jax
import jax.numpy as jnp
import pytest

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
