"""What compilers are told changes no value and no derivative, and is in programs for CPUs alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnorm._core import barriers
from jaxnorm._core.barriers import Copy

X = jnp.arange(6.0).reshape(2, 3)
COPIES = {name: copy for name, copy in vars(Copy).items() if name.isupper()}
mapped = pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap], ids=["eager", "jit", "vmap"])


@mapped
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_copy_is_the_value_and_its_own_derivative(copy, transform):
    f = transform(lambda x: barriers.barrier_copy(copy, x))
    np.testing.assert_array_equal(f(X), X)
    y, pull = jax.vjp(f, X)
    np.testing.assert_array_equal(pull(2 * y)[0], 2 * X)
    np.testing.assert_array_equal(jax.jvp(f, (X,), (X,))[1], X)


@pytest.mark.parametrize("copy", sorted(set(COPIES.values())))
def test_a_copy_stands_behind_as_many_barriers_as_it_is_numbered_on_a_cpu_alone(copy):
    f = jax.jit(lambda x: barriers.barrier_copy(copy, x))
    for platform, count in (("cpu", copy), ("tpu", 0), ("cuda", 0)):
        program = f.trace(X).lower(lowering_platforms=(platform,)).as_text()
        assert program.count("optimization_barrier") == count


def test_what_may_read_one_value_in_one_program_has_a_number_of_its_own():
    """y, its statistics and the tangents of both are computed from the same x."""
    of_x = [Copy.SQUARES, Copy.VALUE, Copy.STATISTICS_TANGENT]
    of_x += [Copy.Y_BY_SLOPE, Copy.Y_BY_SCALE, Copy.Y_BY_X, Copy.Y_BY_MEAN]
    assert len(set(of_x)) == len(of_x)


def test_x_that_is_wide_is_read_as_it_is():
    x, vector, none = barriers.barrier_copies(Copy.VALUE, X, X[0], None)
    assert x is X
    assert none is None
    np.testing.assert_array_equal(vector, X[0])
    narrow = X.astype(jnp.bfloat16)
    assert jax.make_jaxpr(lambda x: barriers.barrier_copies(Copy.VALUE, x)[0])(narrow).eqns


@mapped
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_sum_in_another_dtype(dtype, transform):
    f = transform(lambda a, b: barriers.sum_as(dtype, a, b))
    y, pull = jax.vjp(f, X, 2 * X)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, 3 * X)
    chex.assert_trees_all_equal(pull(y), (3 * X, 3 * X))


def test_a_sum_of_which_one_term_is_mapped():
    f = lambda a, b: barriers.sum_as(jnp.bfloat16, a, b)
    np.testing.assert_array_equal(jax.vmap(f, (0, None))(X, X[0]).astype(jnp.float32), X + X[:1])
    np.testing.assert_array_equal(jax.grad(lambda a: f(a, X).astype(jnp.float32).sum())(X), np.ones((2, 3)))


def test_a_value_after_another_is_itself():
    np.testing.assert_array_equal(jax.jit(barriers.after)(jnp.float32(1), X), X)
