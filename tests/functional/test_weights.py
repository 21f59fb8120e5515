"""Norms of weights beside PyTorch's and timm's, and weights of which there are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from references import close, under

import jaxnorm as jn

pytestmark = pytest.mark.long
W = jax.random.normal(jax.random.key(0), (3, 3, 4, 8))


def test_weight_norm_as_torch():
    torch = under("timm_norms", "torch")
    g = jnp.float32(torch["weight_norm g"])
    close(jn.weight_norm(jnp.float32(torch["weight"]), g, output_axis=0), torch["weight_norm"], 1e-6)
    close(jn.weight_norm(jnp.float32(torch["weight"]), g.ravel(), output_axis=0), torch["weight_norm"], 1e-6)


def test_a_scale_that_is_the_length_gives_the_weights_back():
    length = jnp.linalg.norm(W.reshape(-1, 8), axis=0)
    close(jn.weight_norm(W, length), W, 1e-6)
    np.testing.assert_allclose(np.linalg.norm(np.ravel(jn.weight_norm(W, output_axis=None))), 1, rtol=1e-6)
    two = np.asarray(jn.weight_norm(W, output_axis=(-2, -1)), float)
    np.testing.assert_allclose((two**2).sum((0, 1)), 1, rtol=1e-6)


def test_standardized_as_timm():
    case = under("timm_norms", "StdConv2d")
    w = jnp.moveaxis(jnp.float32(case["param weight"]), (0, 1), (-1, -2))
    hat = jn.standardize_weights(w, epsilon=1e-6)
    y = jax.lax.conv_general_dilated(
        jnp.float32(case["x"]), hat, (1, 1), [(1, 1)] * 2, dimension_numbers=("NCHW", "HWIO", "NCHW")
    )  # fmt: skip
    close(y, case["y"], 2e-5)


def test_standardized_and_scaled_as_timm():
    """NF-nets: the gain, beside √N weights of each output."""
    case = under("timm_norms", "ScaledStdConv2d")
    w = jnp.moveaxis(jnp.float32(case["param weight"]), (0, 1), (-1, -2))
    gain = jnp.float32(case["param gain"]).ravel()
    hat = jn.standardize_weights(w, gain * 1.7 / 54**0.5, epsilon=1e-6)
    y = jax.lax.conv_general_dilated(
        jnp.float32(case["x"]), hat, (1, 1), [(1, 1)] * 2, dimension_numbers=("NCHW", "HWIO", "NCHW")
    )  # fmt: skip
    close(np.asarray(y) + case["param bias"].reshape(-1, 1, 1), case["y"], 2e-5)


def test_spectral_norm_as_torch():
    """Weights and gradient by its vectors, and a step: PyTorch's begins with v and ends with it, the paper's with u."""
    torch = under("timm_norms", "torch")
    w = jnp.float32(torch["weight"])
    u, v = ([jnp.float32(torch[f"spectral {name}{i}"]) for i in (0, 1)] for name in "uv")
    vectors = lambda i: jn.SingularVectors(u[i].reshape(-1, 1, 1, 1), v[i].reshape(w[:1].shape))
    y, pull, _ = jax.vjp(lambda w: jn.spectral_norm(w, vectors(1), 0, output_axis=0), w, has_aux=True)
    close(y, torch["spectral"], 1e-6)
    close(pull(jnp.cos(y))[0], torch["spectral gradient"], 1e-5)
    _, state = jn.spectral_norm(w, vectors(0), output_axis=0)
    close(state.u.ravel(), torch["spectral u1"], 1e-6)
    close(state.v.ravel(), torch["spectral v0"], 1e-6)


@pytest.mark.parametrize("output_axis", [-1, 0, (2, 3)])
def test_the_largest_singular_value_becomes_one(output_axis):
    outputs = {a % 4 for a in (output_axis if isinstance(output_axis, tuple) else (output_axis,))}
    first = sorted(outputs)
    matrix = lambda w: np.moveaxis(np.asarray(w, float), first, range(len(first))).reshape(
        int(np.prod([w.shape[a] for a in first])), -1
    )
    y, state = jn.spectral_norm(W, steps=200, output_axis=output_axis)
    np.testing.assert_allclose(np.linalg.svd(matrix(y), compute_uv=False)[0], 1, rtol=1e-4)
    again, same = jn.spectral_norm(W, state, 0, output_axis=output_axis)
    np.testing.assert_array_equal(again, y)
    np.testing.assert_array_equal(same.u, state.u)


def test_a_state_goes_on_in_a_loop():
    """A step at a time is as many at once; compiled, the carry has shapes and dtypes that stay."""
    _, state = jn.spectral_norm(W)
    step = lambda state, _: (jn.spectral_norm(W, state)[1], None)
    looped, _ = jax.lax.scan(step, state, length=5)
    _, at_once = jn.spectral_norm(W, state, 5)
    close(looped.u, at_once.u, 1e-6)
    narrow = jax.tree.map(lambda v: v.astype(jnp.bfloat16), state)
    assert jax.tree.map(jnp.result_type, jn.spectral_norm(W, narrow)[1]) == jax.tree.map(jnp.result_type, narrow)


VERBS = {
    "weight": lambda w: jn.weight_norm(w, jnp.linspace(1, 2, 8)),
    "standardized": lambda w: jn.standardize_weights(w, jnp.linspace(1, 2, 8), epsilon=0.0),
    "spectral": lambda w: jn.spectral_norm(w, steps=3)[0],
}
each = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)


@each
def test_weights_of_zero_stay_zero_and_have_no_nan(verb):
    for w in (jnp.zeros_like(W), W.at[..., 2].set(0)):
        y, pull = jax.vjp(verb, w)
        np.testing.assert_array_equal(np.asarray(y)[np.asarray(w) == 0], 0)
        assert jnp.isfinite(pull(jnp.ones_like(y))[0]).all()
        curved = jax.jvp(jax.grad(lambda w: jnp.sin(verb(w)).sum()), (w,), (W,))[1]
        assert jnp.isfinite(curved).all()


@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_weights_without_a_direction_leave_the_state_alone(bad):
    _, state = jn.spectral_norm(W)
    y, new = jn.spectral_norm(jnp.full_like(W, bad), state)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(bad))
    np.testing.assert_array_equal(new.u, state.u)
    np.testing.assert_array_equal(new.v, state.v)


@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_singular_vectors_of_any_size(size):
    y, state = jn.spectral_norm(size * W, steps=50)
    np.testing.assert_allclose(y, jn.spectral_norm(W, steps=50)[0], rtol=1e-4, atol=1e-6)
    for v in state:
        np.testing.assert_allclose((v**2).sum(), 1, rtol=1e-6)


def test_what_overflows_is_no_zero():
    _, state = jn.spectral_norm(W)
    assert jnp.isnan(jn.spectral_norm(1e25 * W)[0]).all()
    assert jnp.isnan(jn.spectral_norm(1e25 * W, state)[0]).all()


def test_weights_that_begin_at_zero_go_on():
    _, state = jn.spectral_norm(jnp.zeros_like(W))
    y, _ = jn.spectral_norm(W, state, 50)
    np.testing.assert_allclose(np.linalg.svd(np.reshape(y, (-1, 8)), compute_uv=False)[0], 1, rtol=1e-3)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_kernel_on_several_devices(kind):
    want, _ = jn.spectral_norm(W, steps=3)
    mesh = jax.make_mesh((4,), ("d",), devices=jax.devices()[:4], axis_types=(kind,))
    with jax.set_mesh(mesh):
        for spec in (P(None, None, "d"), P(None, None, None, "d")):
            w = jax.device_put(W, NamedSharding(mesh, spec))
            close(jax.jit(lambda w: jn.spectral_norm(w, steps=3)[0])(w), want)
    many = jnp.stack([W, 2 * W, W + 1, -W])
    mesh = jax.make_mesh((4,), ("d",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    each = lambda w: jn.spectral_norm(w[0], steps=3)[0][None]
    got = jax.jit(jax.shard_map(each, mesh=mesh, in_specs=P("d"), out_specs=P("d")))(many)
    close(got, jnp.stack([jn.spectral_norm(w, steps=3)[0] for w in many]), 1e-5)


@each
@pytest.mark.long
def test_derivatives_of_both_modes(verb):
    """Singular vectors are held: there the derivative is that of σ by w alone, which is no numerical one of y."""
    with jax.enable_x64(True):
        w = W[:2, :2, :2, :8].astype(jnp.float64)
        if verb is VERBS["spectral"]:
            _, state = jn.spectral_norm(w, steps=2000)
            verb = lambda w: jn.spectral_norm(w, state, 2000)[0]
        check_grads(verb, (w,), order=1, modes=("fwd", "rev"), rtol=1e-4, atol=1e-4)


@each
def test_dtypes_and_vmap(verb):
    assert verb(W.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    many = jnp.stack([W, 3 * W + 1])
    close(jax.vmap(verb)(many), jnp.stack([verb(w) for w in many]), 1e-5)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: jn.weight_norm(W, jnp.ones(4)), ValueError, r"weight_norm: scale has shape \(4,\)"),
        (lambda: jn.weight_norm(W.astype(int)), TypeError, "weight_norm: w has dtype int32"),
        (lambda: jn.standardize_weights(W, output_axis=4), ValueError, "output_axis=4 is out of range: w has 4"),
        (lambda: jn.spectral_norm(W, steps=0), ValueError, "steps=0 uses the vectors of a state, and state is None"),
        (lambda: jn.weight_norm(W, eps=1.0), TypeError, "Did you mean epsilon=?"),
        (lambda: jn.spectral_norm(W, steps=-1), ValueError, "steps=-1 is not an int of at least 0"),
        (lambda: jn.spectral_norm(W.astype(jnp.complex64)), TypeError, "singular values is for real numbers"),
        (lambda: jn.spectral_norm(W, jnp.ones(8)), TypeError, "not SingularVectors"),
        (
            lambda: jn.spectral_norm(W, jn.spectral_norm(W, output_axis=0)[1]),
            ValueError,
            r"state.u and state.v have shapes \(3, 1, 1, 1\) and \(1, 3, 4, 8\); those of this kernel have",
        ),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()
