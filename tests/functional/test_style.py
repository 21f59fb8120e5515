"""Adaptive instance norm: the statistics of the style on the content, and its composition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import close

import jaxnorm as jn

pytestmark = pytest.mark.long
CONTENT = jax.random.normal(jax.random.key(0), (3, 4, 5, 6))
STYLE = 3 * jax.random.normal(jax.random.key(1), (3, 7, 2, 6)) + jnp.arange(6.0).reshape(1, 1, 1, 6)
POSITIONS = (1, 2)


def test_the_content_has_the_statistics_of_the_style():
    y = np.asarray(jn.adaptive_instance_norm(CONTENT, STYLE, epsilon=0.0), float)
    want = np.asarray(STYLE, float)
    close(y.mean(POSITIONS), want.mean(POSITIONS))
    close(y.std(POSITIONS), want.std(POSITIONS))


def test_of_itself_it_is_the_content():
    for x in (CONTENT, CONTENT + 1e4):
        np.testing.assert_allclose(jn.adaptive_instance_norm(x, x), x, rtol=1e-6, atol=1e-6)


def test_the_formula():
    x, s = np.asarray(CONTENT, float), np.asarray(STYLE, float)
    root = lambda v: np.sqrt(v.var(POSITIONS, keepdims=True) + 0.1)
    mean = lambda v: v.mean(POSITIONS, keepdims=True)
    want = root(s) * (x - mean(x)) / root(x) + mean(s)
    close(jn.adaptive_instance_norm(CONTENT, STYLE, epsilon=0.1), want)
    moved = [jnp.moveaxis(v, -1, 1) for v in (CONTENT, STYLE)]
    close(jnp.moveaxis(jn.adaptive_instance_norm(*moved, channel_axis=1, epsilon=0.1), 1, -1), want)
    one = jn.adaptive_instance_norm(CONTENT, STYLE[:1], epsilon=0.1)
    close(one[0], want[0])
    alone = jn.adaptive_instance_norm(CONTENT[0], STYLE[0], batch_axis=None, epsilon=0.1)
    close(alone, want[0])


def test_masks_of_both():
    where = jnp.arange(4).reshape(1, 4, 1, 1) < 3
    style_where = jnp.arange(7).reshape(1, 7, 1, 1) < 5
    y = jn.adaptive_instance_norm(
        jnp.where(where, CONTENT, jnp.nan), jnp.where(style_where, STYLE, jnp.nan), where=where, style_where=style_where
    )
    close(y[:, :3], jn.adaptive_instance_norm(CONTENT[:, :3], STYLE[:, :5]))


def test_gradients_flow_into_both():
    loss = lambda c, s: jnp.sin(jn.adaptive_instance_norm(c, s)).sum()
    for got, argument in zip(jax.grad(loss, (0, 1))(CONTENT, STYLE), (CONTENT, STYLE), strict=True):
        assert got.shape == argument.shape
        assert float(jnp.abs(got).max()) > 1e-3
    # What is added to a style is added to y.
    shift = jax.jvp(lambda s: jn.adaptive_instance_norm(CONTENT, s), (STYLE,), (jnp.ones_like(STYLE),))[1]
    close(shift, np.ones(CONTENT.shape))


@pytest.mark.parametrize(
    ("style", "words"),
    [
        (STYLE[:2], r"style has shape \(2, 7, 2, 6\), and content has shape \(3, 4, 5, 6\)"),
        (STYLE[0], "style has shape"),
        (STYLE[..., :3], "elsewhere the style is as large"),
    ],
)
def test_errors(style, words):
    with pytest.raises(ValueError, match=words):
        jn.adaptive_instance_norm(CONTENT, style)


def test_errors_speak_of_the_argument():
    with pytest.raises(TypeError, match="adaptive_instance_norm: style has dtype int32"):
        jn.adaptive_instance_norm(CONTENT, STYLE.astype(int))
    with pytest.raises(ValueError, match="style_where has shape"):
        jn.adaptive_instance_norm(CONTENT, STYLE, style_where=jnp.ones(3, bool))


def test_a_style_of_one_color():
    """Its deviation is 0, and has no derivative."""
    style = jnp.full((1, 2, 2, 6), 3.0)
    f = lambda style: jn.adaptive_instance_norm(CONTENT, style, epsilon=0.0)
    np.testing.assert_array_equal(f(style), 3)
    assert jnp.isfinite(jax.grad(lambda s: jnp.sin(f(s)).sum())(style)).all()


def test_a_style_that_overflows_stays_visible():
    y = jn.adaptive_instance_norm(CONTENT, STYLE.at[0, 0, 0, 2].set(1e20).at[0, 1, 0, 2].set(-1e20))
    bad = np.zeros(y.shape, bool)
    bad[0, ..., 2] = True
    np.testing.assert_array_equal(np.isnan(y), bad)


def test_errors_have_its_name():
    with pytest.raises(ValueError, match="adaptive_instance_norm: where has shape"):
        jn.adaptive_instance_norm(CONTENT, STYLE, where=jnp.ones((3, 4), bool))
    with pytest.raises(TypeError, match="adaptive_instance_norm: style has dtype complex64"):
        jn.adaptive_instance_norm(CONTENT, STYLE.astype(jnp.complex64))
