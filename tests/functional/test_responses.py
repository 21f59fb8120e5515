"""Norms of responses beside timm, PyTorch and ONNX, and where nothing responds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from references import close, recorded, under

import jaxnorm as jn

pytestmark = pytest.mark.long
X = jax.random.normal(jax.random.key(0), (3, 4, 5, 6))


def with_gradient(f, x):
    y, pull = jax.vjp(f, jnp.asarray(x, jnp.float32))
    return y, pull(jnp.cos(y))[0]


def test_filter_responses_as_timm():
    """Its ε is 1e-5, and its layout NCHW."""
    case = under("timm_norms", "FilterResponseNormTlu2d")
    scale, bias, threshold = (case[f"param {name}"] for name in ("weight", "bias", "tau"))
    y, dx = with_gradient(
        lambda x: jn.filter_response_norm(x, scale, bias, threshold, channel_axis=1, epsilon=1e-5), case["x"]
    )
    close(y, case["y"])
    close(dx, case["dx"])


def test_global_responses_as_timm():
    case = under("timm_norms", "GlobalResponseNorm")
    y, dx = with_gradient(
        lambda x: jn.global_response_norm(x, case["param weight"], case["param bias"], channel_axis=1), case["x"]
    )
    close(y, case["y"])
    close(dx, case["dx"])


@pytest.mark.parametrize("size", [3, 5])
def test_local_responses_as_torch(size):
    torch = under("timm_norms", "torch")
    y = jn.local_response_norm(
        jnp.float32(torch["x"]), size=size, alpha=0.3, beta=0.6, k=1.5, channel_axis=1
    )  # fmt: skip
    close(y, torch[f"local_response_norm {size}"], 2e-6)


@pytest.mark.parametrize("name", ["test_lrn", "test_lrn_default"])
def test_local_responses_as_onnx(name):
    case = under("onnx_norms", name)
    given = {key.removeprefix("LRN "): v.item() for key, v in case.items() if key.startswith("LRN ")}
    given["k"] = given.pop("bias", 1.0)
    close(jn.local_response_norm(case["x"], channel_axis=1, **given), case["y"], 1e-6)


def test_a_window_lies_as_that_of_onnx_where_it_is_even():
    """From one channel below to two above, for four."""
    x = jnp.eye(8)
    y = jn.local_response_norm(x, size=4, alpha=4.0, beta=1.0)
    seen = jn.local_response_norm(x + 1e-3, size=4, alpha=4.0, beta=1.0) < 0.9e-3
    np.testing.assert_allclose(np.diag(y), 0.5)
    for c in range(8):
        # Channel i has the 1 of row c in its window where c is in i − 1 … i + 2.
        assert [i for i in range(8) if seen[c, i]] == [i for i in range(max(0, c - 2), min(8, c + 2)) if i != c]


def test_a_window_of_all_channels_is_a_sum():
    y = jn.local_response_norm(X, size=99, alpha=99.0, beta=0.5, k=0.0)
    close(y, jn.unit_norm(X), 1e-5)


VERBS = {
    "filter": lambda x, **kw: jn.filter_response_norm(x, threshold=-1.0, **kw),
    "global": jn.global_response_norm,
    "local": lambda x, **kw: jn.local_response_norm(x, size=3, k=kw.pop("epsilon", 1.0), **kw),
}
each = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)


@each
@pytest.mark.parametrize("epsilon", [0.0, 1e-6])
def test_zeros_give_zeros_and_no_nan(verb, epsilon):
    f = lambda x: verb(x, epsilon=epsilon)
    for x in (jnp.zeros_like(X), X.at[0].set(0).at[:, :, :, 2].set(0)):
        y, dx = with_gradient(f, x)
        curved = jax.jvp(jax.grad(lambda x: jnp.sin(f(x)).sum()), (x,), (X,))[1]
        assert all(jnp.isfinite(v).all() for v in (y, dx, curved))
        np.testing.assert_array_equal(y[0], 0)


@each
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_stays_visible(verb, bad):
    """In what shares a statistic with it, and nowhere else."""
    x = np.array(X)
    x[0, 1, 2, 3] = bad
    y = np.asarray(verb(x))
    spoilt = np.zeros(y.shape, bool)
    where = {"filter": (0, ..., 3), "global": (0,), "local": (0, 1, 2, slice(2, 5))}
    spoilt[where[next(name for name, v in VERBS.items() if v is verb)]] = True
    np.testing.assert_array_equal(np.isnan(y), spoilt)
    np.testing.assert_allclose(y[~spoilt], np.asarray(verb(X))[~spoilt], rtol=1e-6)


def test_globally_a_channel_of_others_devices_counts():
    """Positions over mapped axes: statistics are those of all."""
    halves = jnp.stack(jnp.split(X, 2, 1))
    y = jax.vmap(lambda x: jn.global_response_norm(x, axis_name="d"), axis_name="d")(halves)
    close(jnp.concatenate(y, 1), jn.global_response_norm(X), 1e-6)
    y = jax.vmap(lambda x: jn.filter_response_norm(x, axis_name="d"), axis_name="d")(halves)
    close(jnp.concatenate(y, 1), jn.filter_response_norm(X), 1e-6)


def test_the_file_of_references_is_read():
    assert {"torch/x", "GlobalResponseNorm/dx"} <= recorded("timm_norms").keys()


@pytest.mark.parametrize(
    "f",
    [lambda x: jn.filter_response_norm(x, epsilon=0.0), lambda x: jn.evo_norm_s0(x, groups=2, epsilon=0.0)],
    ids=["filter", "evo"],
)
def test_tiny_data_have_finite_derivatives(f):
    """Of the size of 1/|x|: no power of the deviation overflows on the way."""
    dx = jax.grad(lambda x: (f(x) ** 3).sum())(1e-14 * X)
    assert jnp.isfinite(dx).all()
    assert 1e13 < jnp.abs(dx).max() < 1e16


def test_windows_over_channels_on_several_devices():
    f = lambda x: jnp.sin(jn.local_response_norm(x, size=3, alpha=1.0))
    mesh = jax.make_mesh((2,), ("d",), devices=jax.devices()[:2], axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, P(None, None, None, "d")))
        y, dx = jax.jit(f)(x), jax.jit(jax.grad(lambda x: f(x).sum()))(x)
    close(y, f(X), 1e-6)
    close(dx, jax.grad(lambda x: f(x).sum())(X), 1e-6)
