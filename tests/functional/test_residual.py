"""Residual connection and norm in one call: the sum, and the norm of the sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn

VERBS = {"layer": (jn.add_layer_norm, jn.layer_norm), "rms": (jn.add_rms_norm, jn.rms_norm)}
X, R = (jax.random.normal(jax.random.key(i), (4, 6, 8)) + 2 * i for i in range(2))
OPTIONS = {
    "none": {},
    "where": {"where": X[..., :1] > 0},
    "several axes": {"axis": (1, 2), "epsilon": 0.1},
    "offset": {"scale": jnp.cos(X[0, 0]), "bias": X[0, 1], "scale_offset": 1.0},
    "dtype": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", VERBS)
def test_the_norm_is_that_of_the_sum(kind, option, implementation):
    verb, norm = VERBS[kind]
    y, h = verb(X, R, implementation=implementation, **OPTIONS[option])
    np.testing.assert_array_equal(h, X + R)
    np.testing.assert_array_equal(y, norm(X + R, **OPTIONS[option]))


@pytest.mark.parametrize("kind", VERBS)
def test_a_wide_stream_stays_wide_and_y_is_as_narrow_as_x(kind):
    """A residual in float32 beside products in bfloat16: what is added up is not rounded, what is multiplied is."""
    x = X.astype(jnp.bfloat16)
    y, h = VERBS[kind][0](x, R)
    assert (y.dtype, h.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(h, x.astype(jnp.float32) + R)
    np.testing.assert_array_equal(y, VERBS[kind][1](h, dtype=jnp.bfloat16))
    _, h = VERBS[kind][0](X, R.astype(jnp.bfloat16))
    assert h.dtype == jnp.float32


def test_a_complex_residual_makes_both_complex():
    residual = jax.lax.complex(R, jnp.ones_like(R))
    y, h = jn.add_rms_norm(X, residual)
    assert y.dtype == h.dtype == jnp.complex64
    np.testing.assert_array_equal(y, jn.rms_norm(X.astype(jnp.complex64) + residual))


def test_features_over_devices():
    y, h = jax.vmap(lambda x, r: jn.add_rms_norm(x, r, axis_name="i"), in_axes=2, out_axes=2, axis_name="i")(
        X[..., None], R[..., None]
    )
    np.testing.assert_allclose(y[..., 0], jn.rms_norm(X + R), rtol=1e-5)
    np.testing.assert_array_equal(h[..., 0], X + R)
