"""EvoNorms beside timm's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import close, under

import jaxnorm as jn

pytestmark = pytest.mark.long
X = jax.random.normal(jax.random.key(0), (3, 4, 5, 6))


def test_s0_as_timm():
    case = under("timm_norms", "EvoNorm2dS0")
    params = [case[f"param {name}"] for name in ("weight", "bias", "v")]
    f = lambda x: jn.evo_norm_s0(x, *params, groups=3, channel_axis=1)
    y, pull = jax.vjp(f, jnp.float32(case["x"]))
    close(y, case["y"])
    close(pull(jnp.cos(y))[0], case["dx"])


def test_b0_as_timm():
    """Training, evaluation after it, and the running variance; timm's ε is 1e-3 and its momentum ours of 0.75."""
    case = under("timm_norms", "EvoNorm2dB0")
    norm = jn.EvoNormB0(channel_axis=1, momentum=0.75, epsilon=1e-3, ddof=1)
    _, state = norm.init(6)
    params = jn.EvoAffine(*(jnp.float32(case[f"param {name}"]) for name in ("weight", "bias", "v")))
    y, pull, state = jax.vjp(lambda x: norm.apply(params, state, x, train=True), jnp.float32(case["x"]), has_aux=True)
    close(y, case["y"])
    close(pull(jnp.cos(y))[0], case["dx"])
    close(state.var, case["var"])
    close(norm.apply(params, state, jnp.float32(case["x"]), train=False)[0], case["evaluated"])


def test_zeros_give_the_bias_and_no_nan():
    zeros = jnp.zeros_like(X)
    for f in (
        lambda x: jn.evo_norm_s0(x, groups=2, bias=1.5, epsilon=0.0),
        lambda x: jn.evo_norm_b0(x, None, train=True, bias=1.5, epsilon=0.0)[0],
    ):
        np.testing.assert_array_equal(f(zeros), 1.5)
        assert jnp.isfinite(jax.grad(lambda x, f=f: f(x).sum())(zeros)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_stays_visible(bad):
    x = np.array(X)
    x[0, 1, 2, 3] = bad
    group = np.zeros(x.shape, bool)
    group[0, ..., 3:] = True
    np.testing.assert_array_equal(np.isnan(jn.evo_norm_s0(x, groups=2)), group)
    channel = np.zeros(x.shape, bool)
    channel[..., 3] = True
    state = jn.EvoNormB0().init(6)[1]
    y, new = jn.evo_norm_b0(x, state, train=True)
    np.testing.assert_array_equal(np.isnan(y), channel)
    assert new.var[3] == state.var[3]
    y, _ = jn.evo_norm_b0(X, state._replace(var=state.var.at[3].set(-1.0)), train=False)
    np.testing.assert_array_equal(np.isnan(y), channel)


def test_a_batch_over_devices():
    halves = X[:2].reshape(2, 1, *X.shape[1:])
    state = jn.EvoNormB0().init(6)[1]
    run = lambda x: jn.evo_norm_b0(x, state, train=True, axis_name="d")
    y, new = jax.vmap(run, axis_name="d")(halves)
    want, want_new = jn.evo_norm_b0(X[:2], state, train=True)
    close(y.reshape(want.shape), want)
    close(new.var[0], want_new.var)
