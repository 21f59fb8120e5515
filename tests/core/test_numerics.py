"""Small arithmetic: dtypes, what counts, and sums in two numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import export

from jaxnorm._core import numerics

floats = st.floats(-(2.0**40), 2.0**40, width=32)


@pytest.mark.parametrize(
    ("dtype", "wide", "real"),
    [
        ("bfloat16", "float32", "float32"),
        ("float16", "float32", "float32"),
        ("float32", "float32", "float32"),
        ("float64", "float64", "float64"),
        ("complex64", "complex64", "float32"),
        ("complex128", "complex128", "float64"),
    ],
)
def test_dtypes_of_arithmetic(dtype, wide, real):
    with jax.enable_x64(True):
        x = jnp.ones(2, dtype)
        assert (numerics.wide_dtype(x), numerics.real_dtype(x)) == (wide, real)
        assert numerics.deviation(x, *[x.astype(wide)] * 2).dtype == wide
        assert numerics.widest(jnp.dtype("float32"), numerics.real_dtype(x)) == real


@given(floats, floats, floats)
def test_a_sum_in_two_numbers_loses_nothing(a, b, size):
    """Beside a residual that is one: at most half a unit in the last place of the sum."""
    residual = np.float32(np.spacing(np.float32(a)) * (size / 2.0**41))
    near, left = numerics.add_with_residual(*map(jnp.float32, (a, b, residual)))
    exact = np.float64(a) + np.float64(b) + np.float64(residual)
    assert abs(np.float64(near) + np.float64(left) - exact) <= 2.0**-46 * max(abs(a), abs(b))
    assert abs(np.float64(near) - exact) <= np.spacing(np.float32(abs(exact))) * 0.51


def test_the_second_number_has_no_derivative_and_is_none_beside_what_has_overflowed():
    add = lambda a, b, residual: numerics.add_with_residual(a, b, residual)
    ones = jax.jacobian(add, argnums=(0, 1, 2))(*map(jnp.float32, (1e8, 3.0, 0.5)))
    np.testing.assert_array_equal(ones, [[1, 1, 1], [0, 0, 0]])
    near, left = add(jnp.float32(3e38), jnp.float32(3e38), jnp.float32(1))
    assert not np.isfinite(near)
    assert left == 0


def test_what_does_not_count_is_zero_and_gets_no_cotangent():
    x = jnp.array([1.0, np.nan, np.inf, 4.0])
    for where in (jnp.array([True, False, False, True]), jnp.array([2.0, 0.0, 0.0, 1.0])):
        y, pull = jax.vjp(lambda x, where=where: numerics.masked(x, where), x)
        np.testing.assert_array_equal(y, [1, 0, 0, 4])
        np.testing.assert_array_equal(pull(jnp.full(4, np.nan))[0], [np.nan, 0, 0, np.nan])
    np.testing.assert_array_equal(numerics.weighted(jnp.array([3.0, 4.0]), jnp.array([0.5, 2.0])), [1.5, 8])


def test_padding_that_is_large_stays_finite_and_data_do_not():
    y = jnp.array([1e30, -1e30, 1e30])
    narrow = numerics.narrow(y, jnp.array([True, False, False]), jnp.float16)
    np.testing.assert_array_equal(narrow, np.array([np.inf, -65504, 65504], np.float16))


def test_a_reciprocal_is_always_a_number():
    np.testing.assert_array_equal(numerics.reciprocal(jnp.array([0.0, 4.0])), [1, 0.25])


def test_a_size_that_is_a_symbol_is_not_known_to_be_small():
    (n,) = export.symbolic_shape("n")
    assert [numerics.at_most(size, 3) for size in (3, 4, n)] == [True, False, False]


def test_products_of_complex_numbers_are_those_of_their_parts():
    a, b = jnp.array([1 + 2j]), jnp.array([3 - 1j])
    np.testing.assert_array_equal(numerics.real_product(a, b), [1 * 3 + 2 * -1])
