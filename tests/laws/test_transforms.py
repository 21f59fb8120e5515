"""Every norm under every transformation of JAX, against the float64 oracle."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import CASES, EACH, WIDER, norms, one_each, standard, table
from jax.test_util import check_grads

import jaxnorm as jn

SINGLE = 16


@norms
def test_values(case):
    params, state = case.params()
    x = case.data()
    y = case.norm(params, state)(x)
    assert oracle.ulps(y, case.exact(x, params)) < SINGLE
    assert y.dtype == x.dtype


@one_each
def test_values_without_jit(case):
    params, state = case.params()
    y, _ = case.spec.apply(params, state, case.data(), train=True)
    assert oracle.ulps(y, case.exact(case.data(), params)) < SINGLE


@norms
@pytest.mark.parametrize(("dtype", "digits"), [(jnp.bfloat16, 2**-8), (jnp.float16, 2**-11)], ids=["bf16", "f16"])
def test_narrow_floats_are_rounded_once(case, dtype, digits):
    params, state = case.params()
    x = case.data(dtype)
    y = case.norm(params, state)(x)
    want = case.exact(np.asarray(x, float), params)
    assert y.dtype == dtype
    # Half a unit in the last place is the rounding of y itself; a little more is that of float32 before it.
    np.testing.assert_allclose(np.asarray(y, float), want, rtol=0.51 * 2 * digits, atol=1e-5)


@norms
def test_double_precision(case):
    with jax.enable_x64(True):
        x = case.data(jnp.float64)
        params, state = case.params(jnp.float64)
        y = case.norm(params, state)(x)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(np.asarray(y), case.exact(x, params), rtol=1e-13, atol=1e-13)


REAL = ("dynamic tanh", "evo S0", "evo S0 NCHW", "evo B0", "evo B0 NCHW", "filter response")
"""Norms of real numbers alone."""


@table([case for case in CASES + WIDER if case.name not in REAL])
def test_complex(case):
    params, _ = case.params()
    _, state = case.spec.init(case.spec.features(case.shape), jnp.complex64)
    x = case.data(jnp.complex64) + (2 - 1j)
    y = case.norm(params, state)(x)
    assert oracle.ulps(y, case.exact(x, params)) < SINGLE
    assert y.dtype == jnp.complex64


@norms
@pytest.mark.parametrize("kind", ["mask", "weights", "narrow mask", "integers"])
def test_masks_and_weights(case, kind):
    shape = (*case.shape[:-1], 1) if kind == "narrow mask" else case.shape
    where = np.random.default_rng(3).uniform(size=shape)
    where = {"weights": where.astype(np.float32), "integers": (3 * where).astype(np.int32)}.get(kind, where > 0.3)
    params, state = case.params()
    x = case.data()
    y = case.norm(params, state, where=where)(x)
    assert oracle.ulps(y, case.exact(x, params, where=where)) < SINGLE


@norms
def test_vmap_over_data(case):
    norm = case.norm()
    xs = np.stack([case.data(seed=s) + 10.0**s for s in range(4)])
    ys = np.stack([norm(x) for x in xs])
    np.testing.assert_allclose(jax.jit(jax.vmap(norm))(xs), ys, rtol=2e-6, atol=2e-6)
    inner = jax.jit(jax.vmap(norm, in_axes=2, out_axes=1))(np.moveaxis(xs, 0, 2))
    np.testing.assert_allclose(inner, np.moveaxis(ys, 0, 1), rtol=2e-6, atol=2e-6)


@norms
def test_vmap_over_parameters_and_state(case):
    params, state = case.params()
    many = jax.tree.map(lambda v: jnp.stack([v, 2 * v]), (params, state))
    x = case.data()
    for train in (True, False):
        apply = jax.jit(lambda p, s, train=train: case.spec.apply(p, s, x, train=train))
        together = jax.jit(jax.vmap(apply))(*many)
        for i in range(2):
            alone = apply(*jax.tree.map(lambda v, i=i: v[i], many))
            jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=2e-6, atol=2e-6), together, alone)


@table([case for case in CASES + WIDER if hasattr(case.spec, "epsilon")])
def test_vmap_and_jit_over_the_spec(case):
    epsilons = jnp.array([1e-5, 1e-2, 1.0])
    grid = jax.tree.map(lambda leaf: jnp.full(3, leaf), case.spec)
    grid = dataclasses.replace(grid, epsilon=epsilons)
    params, state = case.params()
    x = case.data()
    ys = jax.jit(jax.vmap(lambda spec: spec.apply(params, state, x, train=True)[0]))(grid)
    for y, epsilon in zip(ys, epsilons, strict=True):
        assert oracle.ulps(y, case.exact(x, params, epsilon=float(epsilon))) < SINGLE


def held(spec):
    """A spec whose derivative is that of its formula: corrections of batch renorm have none."""
    return dataclasses.replace(spec, r_max=1.0, d_max=0.0) if isinstance(spec, jn.BatchRenorm) else spec


@one_each
def test_derivatives_of_both_modes_to_second_order(case):
    params, state = case.params()

    def norm(x, params, epsilon):
        return held(case.with_epsilon(epsilon)).apply(params, state, x, train=True)[0]

    with jax.enable_x64(True):
        arguments = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), (case.data(), params, 0.1))
        check_grads(jax.jit(norm), arguments, order=2, modes=("fwd", "rev"), rtol=1e-5, atol=1e-6)


@one_each
def test_derivatives_by_weights(case):
    weights = jax.random.uniform(jax.random.key(5), case.shape, minval=0.1)
    params, state = case.params()
    with jax.enable_x64(True):
        x, w = (jnp.asarray(v, jnp.float64) for v in (case.data(), weights))
        norm = lambda x, w: held(case.spec).apply(params, state, x, train=True, where=w)[0]
        check_grads(jax.jit(norm), (x, w), order=2, modes=("fwd", "rev"), rtol=1e-5, atol=1e-6)


@standard
def test_gradient_is_that_of_the_definition(case):
    params, state = case.params()
    x, g = case.data(), case.data(seed=1)

    def standardized(spec, x):
        label = jnp.asarray(oracle.labels(spec, case.shape))
        share = label.reshape(-1, 1) == label.reshape(1, -1)
        share = share.astype(x.dtype) / share.sum(1, keepdims=True).astype(x.dtype)
        mean = 0 if isinstance(spec, oracle.UNCENTERED) else (share @ x.reshape(-1)).reshape(x.shape)
        var = (share @ ((x - mean) ** 2).reshape(-1)).reshape(x.shape)
        return (x - mean) / jnp.sqrt(var + case.spec.epsilon)

    def definition(x, params):
        lie = lambda v: v.reshape([n if a in case.axes else 1 for a, n in enumerate(case.shape)])
        given = {name: lie(v) for name, v in params._asdict().items() if v is not None}
        of = oracle.mixture(case.spec, given.get("gate"))
        return sum(share * standardized(spec, x) for share, spec in of) * given["scale"] + given.get("bias", 0)

    with jax.enable_x64(True):
        x, g, params = jax.tree.map(lambda v: jnp.asarray(v, jnp.float64), (x, g, params))
        norm = lambda x, params: case.spec.apply(params, state, x, train=True)[0]
        got, want = (jax.jit(lambda x, p, f=f: jax.vjp(f, x, p)[1](g))(x, params) for f in (norm, definition))
        chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-9)


@one_each
def test_hessian_and_nested_transforms(case):
    params, state = case.params()
    small = case.data()[:2, :1]
    loss = lambda x: (case.spec.apply(params, state, x, train=True)[0] ** 3).sum()
    hessian = jax.jit(jax.hessian(loss))(small).reshape(small.size, small.size)
    np.testing.assert_allclose(hessian, hessian.T, atol=2e-2)
    tangent = case.data(seed=2)[:2, :1]
    by_jvp = jax.jit(lambda x, t: jax.jvp(jax.grad(loss), (x,), (t,))[1])(small, tangent)
    np.testing.assert_allclose(hessian @ tangent.ravel(), by_jvp.ravel(), rtol=1e-3, atol=2e-2)
    per_example = jax.jit(jax.vmap(jax.grad(jax.checkpoint(loss))))(jnp.stack([small, 2 * small]))
    np.testing.assert_allclose(per_example[1], jax.jit(jax.grad(loss))(2 * small), rtol=1e-4, atol=1e-4)


@norms
def test_scan_carries_the_state(case):
    params, state = case.params()
    xs = jnp.stack([case.data(seed=s) for s in range(3)])

    def step(state, x):
        y, new = case.spec.apply(params, state, x, train=True)
        return new, (y, state)

    last, (ys, states) = jax.lax.scan(step, state, xs)
    assert jax.tree.map(lambda v: (v.shape, v.dtype, v.weak_type), last) == jax.tree.map(
        lambda v: (v.shape, v.dtype, v.weak_type), state
    )
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        before = {"state": jax.tree.map(lambda v, i=i: v[i], states)} if case.wider else {}
        assert oracle.ulps(y, case.exact(x, params, **before)) < SINGLE


@norms
def test_one_trace_per_signature(case):
    params, state = case.params()

    # It counts by the name of a function.
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def apply(spec, params, state, x):
        return spec.apply(params, state, x, train=True)

    for seed in range(3):
        _, state = apply(case.spec, params, state, case.data(seed=seed))


@table([case for case in CASES + WIDER if case.name in EACH and hasattr(case.spec, "epsilon")])
def test_gradient_of_epsilon_reaches_the_spec(case):
    params, state = case.params()
    x, g = case.data(), case.data(seed=1)
    loss = lambda spec: (g * held(spec).apply(params, state, x, train=True)[0]).sum()
    slope = jax.jit(jax.grad(loss))(dataclasses.replace(case.spec, epsilon=0.5)).epsilon
    h = 1e-3
    case = dataclasses.replace(case, spec=held(case.spec))
    exactly = [(np.asarray(g, float) * case.exact(x, params, epsilon=0.5 + s)).sum() for s in (-h, h)]
    np.testing.assert_allclose(slope, (exactly[1] - exactly[0]) / (2 * h), rtol=1e-3, atol=1e-3)
