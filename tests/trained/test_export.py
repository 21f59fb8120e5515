"""Programs for converters: short, in operations that all of them know, and as accurate as those for devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import EACH, HOSTILE, norms, one_each
from flax import linen as nn
from jax import export
from models import says

import jaxnorm as jn

UNKNOWN = re.compile(r"\b(platform_index|jaxnorm_\w+|optimization_barrier|while|cond|scan|pallas_call)\[")


def program(f, *args):
    return str(jax.make_jaxpr(f)(*args))


@norms
def test_operations_that_all_know(case):
    params, state = case.params()
    x = case.data()
    for train, where in ((False, None), (True, None), (False, x[..., :1] > 0)):
        f = lambda x, train=train, where=where: case.spec.apply(params, state, x, train=train, where=where)[0]
        assert UNKNOWN.search(program(f, x)) or (state is not None and not train) or case.wider
        assert not UNKNOWN.search(program(jn.portable(f), x))
    if case.name in EACH:
        np.testing.assert_allclose(jax.jit(jn.portable(f))(x), jax.jit(f)(x), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", HOSTILE)
def test_accurate_at_any_mean(name):
    spec, shape = HOSTILE[name], (4, 8, 8, 8)
    state = spec.init(spec.features(shape))[1]
    norm = jax.jit(jn.portable(lambda x: spec.apply(jn.Affine(), state, x, train=True)[0]))
    z = np.random.default_rng(0).normal(size=shape)
    for mean in (0, 1e4, 1e6):
        x = np.float32(z + mean)
        want = norm(jnp.float32(np.float64(x) - mean))
        np.testing.assert_allclose(norm(x), want, rtol=1e-4, atol=1e-5)
    assert (norm(jnp.full(shape, 3.7e4)) == 0).all()
    assert np.isnan(norm(jnp.full(shape, jnp.nan))).all()


@one_each
def test_derivatives(case):
    params, state = case.params()
    f = lambda params, x: (case.spec.apply(params, state, x, train=True)[0] ** 3).sum()
    want = jax.jit(jax.grad(f, (0, 1)))(params, case.data())
    got = jax.jit(jax.grad(jn.portable(f), (0, 1)))(params, case.data())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), got, want)


DROP_INS = {
    "BatchNorm": ({"use_running_average": True}, 2.5),
    "InstanceNorm": ({}, 3.1),
    "LayerNorm": ({}, 3),
    "RMSNorm": ({}, 2.4),
    "GroupNorm": ({"num_groups": 4}, 3.5),
}


def operations(module, x, portable):
    """Operations of a norm in evaluation, for one platform: all of them, and those on all of x."""
    variables = module.init(jax.random.key(0), x)
    apply = lambda x: module.apply(variables, x)
    exported = export.export(jax.jit(jn.portable(apply) if portable else apply), platforms=["cpu"])(x)
    found = re.findall(r"= (?:stablehlo|chlo|call|func).*", exported.mlir_module())
    of_x = re.compile(r"= stablehlo\.(add|subtract|multiply|divide|select).*: tensor<4x6x6x8xf32>")
    return len(found), sum(bool(of_x.match(line)) for line in found)


@pytest.mark.parametrize("name", DROP_INS)
def test_programs_beside_those_of_flax(name):
    """More of them on vectors: for a variance of 0 or below, or that overflows, and for a mean that is far from 0."""
    x = jnp.ones((4, 6, 6, 8))
    options, times = DROP_INS[name]
    every, of_x = operations(getattr(jn.linen, name)(**options), x, portable=True)
    most, most_of_x = operations(getattr(nn, name)(**options), x, portable=False)
    assert every <= times * most
    assert 0 < of_x <= most_of_x + (0 if name in ("BatchNorm", "RMSNorm") else 5)


def test_a_batch_norm_in_evaluation_has_no_branch_in_any_case():
    """Selects on vectors: of a variance below 0, and of one that is 0."""
    x = jnp.ones((4, 6, 6, 8))
    for module in (jn.linen.BatchNorm(use_running_average=True), jn.linen.Norm(jn.BatchNorm(), train=False)):
        variables = module.init(jax.random.key(0), x)
        exported = export.export(jax.jit(module.apply), platforms=["cpu", "cuda", "tpu"])(variables, x)
        text = exported.mlir_module()
        assert not re.search(r"stablehlo\.(case|if|while)|custom_call", text)
        selects = re.findall(r"stablehlo\.select.* tensor<([\dx]+)xf32>", text)
        assert len(selects) == 2
        assert all(np.prod([int(n) for n in shape.split("x")]) == 8 for shape in selects)


@one_each
def test_any_size_for_all_platforms(case):
    """Exported with a symbolic batch, written to bytes and read again."""
    spec = case.spec
    params, state = spec.init(8)
    (batch,) = export.symbolic_shape("batch")
    f = lambda x: spec.apply(params, state, x, train=False)[0]
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 8)) + 100
    for g in (f, jn.portable(f)):
        exported = export.export(jax.jit(g), platforms=["cpu", "cuda", "tpu"])(
            jax.ShapeDtypeStruct((batch, 4, 4, 8), jnp.float32)
        )
        again = export.deserialize(exported.serialize())
        np.testing.assert_allclose(again.call(x), f(x), rtol=1e-5, atol=1e-5)


def test_mistakes():
    def generator(x):
        yield jn.layer_norm(x)

    async def coroutine(x):
        return jn.layer_norm(x)

    for function in (generator, coroutine):
        says(lambda f=function: jn.portable(f), "is a generator or async")
    says(lambda: jn.portable(3), "portable: 3 is not a function")
