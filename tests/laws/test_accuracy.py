"""Accuracy on hostile inputs, and finite results where a formula would divide by zero."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import wider
from cases import CASES, HOSTILE, optimized, standard

import jaxnorm as jn
from benchmarks import accuracy

BOUND = 16
"""Units of 2⁻²⁴ (1 + |y|) by which y may be off."""


def hostile(shape):
    """Those of the benchmarks, and more."""
    inputs = accuracy.hostile(shape)
    yield from inputs.items()
    noise = inputs["standard normal"]
    yield "mean 1", noise + 1
    yield "mean 1.7", noise + 1.7
    yield "mean 2.5", noise + 2.5
    yield "small variance", 30 + 1e-3 * noise
    yield "two values", 0.1 * np.sign(noise)
    yield "skewed", np.exp(3 * noise)
    yield "squares overflow", 1e20 + 1e15 * noise
    for constant in (1.0, 3.7e4):
        yield f"constant {constant}", np.full(shape, constant)


SHAPES = {"small": (4, 6, 5, 4), "odd": (23, 9, 5, 3), "large": (32, 28, 28, 8), "wide": (3, 2, 2, 1500)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("spec", [*HOSTILE.values(), jn.GroupNorm(groups=1)], ids=[*HOSTILE, "one group"])
def test_hostile_inputs(spec, shape):
    if isinstance(spec, jn.GroupNorm) and shape[-1] % spec.groups:
        pytest.skip("groups of equal size")
    state = spec.init(spec.features(shape))[1]
    norm = optimized(lambda x: spec.apply(jn.Affine(), state, x, train=True)[0])
    errors = {}
    for name, x in hostile(shape):
        x = x.astype(np.float32)
        errors[name] = oracle.ulps(norm(x), oracle.normalize(spec, x))
    assert max(errors.values()) < BOUND, errors


FAMILY = {
    "renorm": jn.BatchRenorm(),
    "switchable": jn.SwitchableNorm(),
    "filter response": jn.FilterResponseNorm(),
    "global response": jn.GlobalResponseNorm(),
    "local response": jn.LocalResponseNorm(size=3, alpha=1.0),
    "unit": jn.UnitNorm(),
    "unit of order 1": jn.UnitNorm(order=1),
    "simple": jn.SimpleNorm(),
    "dynamic tanh": jn.DynamicTanh(),
    "evo S0": jn.EvoNormS0(groups=2),
    "evo B0": jn.EvoNormB0(),
}


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILY)
def test_hostile_inputs_of_the_wider_family(name):
    """Those of the benchmarks: nothing that overflows a mean square."""
    spec, shape = FAMILY[name], (32, 28, 28, 8)
    params, state = spec.init(8)
    if isinstance(spec, jn.GlobalResponseNorm):
        params = params._replace(scale=jnp.ones(8))
    given = {"scale": 1.0, "bias": 0.0} | {k: np.asarray(v) for k, v in params._asdict().items() if v is not None}
    norm = optimized(lambda state, x: spec.apply(params, state, x, train=True)[0])
    errors = {}
    for kind, x in accuracy.hostile(shape).items():
        x = x.astype(np.float32)
        if isinstance(spec, jn.BatchRenorm):
            # Beside a deviation that is much smaller than the batch's, the rounding of its mean is large.
            state = jn.RunningStats(np.float32(x.mean((0, 1, 2))), np.float32(1.5 * x.var((0, 1, 2))))
        errors[kind] = oracle.ulps(norm(state, x), wider.normalize(spec, x, state=state, **given))
    assert max(errors.values()) < BOUND, errors


@pytest.mark.parametrize("mean", [0.0, 3.0, 1e4, -1e30, np.inf, np.nan, (0, 1e4, np.nan, -np.inf, 3)], ids=str)
def test_no_running_mean_spoils_the_batch(mean):
    x = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32) + 3
    state = jn.BatchNorm().init(5)[1]._replace(mean=jnp.full(5, jnp.array(mean, jnp.float32)))
    y, _ = jax.jit(lambda s: jn.batch_norm(x, s, train=True))(state)
    assert oracle.ulps(y, oracle.normalize(jn.BatchNorm(), x)) < BOUND


def test_moments_of_hostile_inputs():
    for name, x in hostile((32, 28, 28, 8)):
        x = x.astype(np.float32)
        found = optimized(lambda x: jn.moments(x, (0, 1, 2)))(x)
        count, mean, var = (v[0, 0, 0] for v in oracle.statistics(jn.BatchNorm(), x))
        np.testing.assert_array_equal(found.count, count)
        np.testing.assert_allclose(found.mean, mean, rtol=2**-22, atol=2**-20 * np.sqrt(var).max(), err_msg=name)
        np.testing.assert_allclose(found.var, var, rtol=2e-6, atol=1e-37, err_msg=name)


@standard
def test_a_constant_gives_the_bias(case):
    params, state = case.params()
    structure = jax.tree.structure(case.spec)
    bias = np.broadcast_to(case.broadcast(params.bias), case.shape)

    @jax.jit
    def run(x, epsilon):
        spec = jax.tree.unflatten(structure, [epsilon] * structure.num_leaves)
        norm = lambda x, params: spec.apply(params, state, x, train=True)[0]
        grads = jax.grad(lambda x, params: norm(x, params).sum(), (0, 1))(x, params)
        curved = jax.jvp(jax.grad(lambda x: (norm(x, params) ** 2).sum()), (x,), (x + 1,))
        return norm(x, params), grads, curved

    # The mean square of a constant is not 0.
    for constant in (0.0,) if isinstance(case.spec, oracle.UNCENTERED) else (0.0, 0.1, 3.7e4):
        for epsilon in (0.0, 1e-5):
            y, *derivatives = run(jnp.full(case.shape, constant), epsilon)
            np.testing.assert_allclose(y, bias, atol=1e-5)
            chex.assert_tree_all_finite(derivatives)


@pytest.mark.parametrize("case", [c for c in CASES if not isinstance(c.spec, oracle.UNCENTERED)], ids=lambda c: c.name)
def test_one_element_per_statistic(case):
    params, state = case.params()
    shape = tuple(n if a in case.axes else 1 for a, n in enumerate(case.shape))
    if isinstance(case.spec, jn.LayerNorm | jn.GroupNorm):
        pytest.skip("these share a statistic between features")
    x = jnp.full(shape, 7.5)
    loss = lambda x: case.spec.apply(params, state, x, train=True)[0].sum()
    value, grads = jax.jit(jax.value_and_grad(loss))(x)
    np.testing.assert_allclose(value, np.asarray(params.bias, float).sum(), rtol=1e-6)
    # To the rounding of terms that cancel, of the size 1/√ε.
    np.testing.assert_allclose(grads, 0, atol=1e-6 / case.spec.epsilon**0.5)


@pytest.mark.parametrize("shape", [(0, 3, 3, 4), (2, 0, 3, 4), (2, 3, 3, 0), (0, 0, 0, 0)])
@pytest.mark.parametrize(
    "spec",
    [jn.BatchNorm(), jn.InstanceNorm(), jn.LayerNorm(), jn.RMSNorm(), jn.GroupNorm(groups=1), jn.Identity()],
    ids=lambda s: type(s).__name__,
)
def test_no_data(spec, shape):
    """An axis of size 0: nothing to normalize, nothing to learn."""
    params, state = spec.init(shape[-1])
    y, new = spec.apply(params, state, jnp.ones(shape), train=True)
    assert y.shape == shape
    chex.assert_trees_all_equal(new, state)
    grads = jax.jit(jax.grad(lambda p: spec.apply(p, state, jnp.ones(shape), train=True)[0].sum()))(params)
    chex.assert_tree_all_finite(grads)
