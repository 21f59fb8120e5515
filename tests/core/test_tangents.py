"""Tangents that are zero by construction are None, and stay it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm._core.tangents import nonzero_tangent, plus, recomputing, times


def test_zero_is_the_identity_of_sums_and_absorbs_products():
    one = jnp.float32(1)
    assert plus() is plus(None, None) is times(one, None) is None
    assert plus(None, one) is one
    np.testing.assert_array_equal(plus(one, None, one, times(3, one)), 5)


def test_a_tangent_that_nobody_gave_is_none():
    found = []

    @jax.custom_jvp
    def product(a, b):
        return a * b

    @partial(product.defjvp, symbolic_zeros=True)
    def _(primals, tangents):
        (a, b), (da, db) = primals, map(nonzero_tangent, tangents)
        found.append((da is None, db is None))
        return product(a, b), plus(times(b, da), times(a, db))

    assert jax.grad(product)(3.0, 4.0) == 4
    assert jax.grad(product, argnums=1)(3.0, 4.0) == 3
    assert jax.grad(product, argnums=(0, 1))(3.0, 4.0) == (4, 3)
    assert found == [(False, True), (True, False), (False, False)]


def test_equal_norms_are_traced_once():
    """The linear part of a derivative, and its transpose: a network has many norms that are alike."""
    traced = []

    def slope(factor, x, dx):
        traced.append(factor)
        return factor * jnp.cos(factor * x) * dx

    @partial(jax.custom_jvp, nondiff_argnums=(0,))
    def sine(factor, x):
        return jnp.sin(factor * x)

    @sine.defjvp
    def _(factor, primals, tangents):
        return sine(factor, *primals), recomputing(slope, factor)(*primals, *tangents)

    deep = lambda x: sine(2.0, sine(3.0, sine(2.0, sine(2.0, x))))
    x = jnp.linspace(-1, 1, 5)
    np.testing.assert_allclose(jax.vmap(jax.grad(deep))(x), jax.vmap(jax.jacfwd(deep))(x), rtol=1e-5)
    assert sorted(set(traced)) == [2, 3]
    jax.jit(jax.grad(deep)).lower(x[0])
    before = len(traced)
    jax.jit(jax.grad(lambda x: deep(deep(x)))).lower(x[0])
    assert len(traced) == before
