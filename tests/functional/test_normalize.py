"""What all norms make of `scale_offset`, `dtype` and `implementation`: the same, whichever norm it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import CASES, EVERY_SPEC, norms, one_each
from platforms import on_every_platform, programs_for

import jaxnorm as jn

KEY = jax.random.key(3)


def with_options(case, **options):
    return dataclasses.replace(case, spec=dataclasses.replace(case.spec, **options))


def value_and_gradients(spec, state, x, g, params, train=True):
    """y, and the cotangents of x and of all parameters, compiled."""

    @jax.jit
    def run(params, x):
        y, pull = jax.vjp(lambda params, x: spec.apply(params, state, x, train=train)[0], params, x)
        return y, pull(g)

    return run(params, x)


def close(got, want, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, want)


# scale_offset


@norms
def test_an_offset_is_added_to_the_scale(case):
    """Values and all gradients are those of the sum, in training and evaluation."""
    params, state = case.params()
    if params.scale is None:
        params = params._replace(scale=jnp.linspace(1, 2, case.spec.features(case.shape)))
    without = params._replace(scale=params.scale - 1.5)
    x, g = case.data(), case.data(seed=9)
    offset = with_options(case, scale_offset=1.5).spec
    for train in (True, False):
        got = value_and_gradients(offset, state, x, g, without, train)
        close(got, value_and_gradients(case.spec, state, x, g, params, train))


@one_each
def test_an_offset_has_both_modes_and_second_derivatives(case):
    params, state = case.params()
    near = params._replace(scale=params.scale - 1)
    x, v = case.data(), case.data(seed=9)

    def second(spec, params):
        y = lambda x, scale: jnp.sin(spec.apply(params._replace(scale=scale), state, x, train=True)[0]).sum()
        push = lambda f: jax.jvp(f, (x, params.scale), (v, jnp.ones_like(params.scale)))[1]
        return jax.jit(lambda: push(jax.grad(y, argnums=(0, 1))))()

    close(second(with_options(case, scale_offset=1.0).spec, near), second(case.spec, params), 1e-4)


@pytest.mark.parametrize("spec", EVERY_SPEC, ids=str)
def test_initially_offset_and_scale_are_one(spec):
    spec = dataclasses.replace(spec, use_scale=True)
    shifted = dataclasses.replace(spec, scale_offset=1.0)
    (params, state), (plain, _) = shifted.init(4), spec.init(4)
    # A global response norm begins as y = x.
    np.testing.assert_array_equal(params.scale, -1 if isinstance(spec, jn.GlobalResponseNorm) else 0)
    x = 3 * jax.random.normal(KEY, (3, 5, 4)) + 1
    y, _ = shifted.apply(params, state, x, train=True)
    np.testing.assert_array_equal(y, spec.apply(plain, state, x, train=True)[0])
    assert shifted != spec


@pytest.mark.parametrize("spec", EVERY_SPEC, ids=str)
def test_without_a_scale_the_factor_is_one(spec):
    x = jax.random.normal(KEY, (3, 5, 4))
    alone = dataclasses.replace(spec, use_scale=False)
    shifted = dataclasses.replace(alone, scale_offset=7.0)
    params, state = shifted.init(4)
    assert params.scale is None
    y, _ = shifted.apply(params, state, x, train=True)
    np.testing.assert_array_equal(y, alone.apply(params, state, x, train=True)[0])


def test_a_narrow_scale_keeps_its_digits_beside_an_offset():
    """1 + γ in bfloat16 would be 1 for every γ below 2⁻⁹."""
    x = jax.random.normal(KEY, (64, 8))
    scale = jnp.full(8, 2.0**-12, jnp.bfloat16)
    y = jn.rms_norm(x, scale, scale_offset=1.0)
    assert oracle.ulps(y, oracle.normalize(jn.RMSNorm(), x, 1 + 2.0**-12)) < 16
    assert not np.array_equal(y, jn.rms_norm(x))


@on_every_platform
def test_offsets_on_every_platform(platform):
    x = jax.random.normal(KEY, (4, 6, 5, 3)) + 100
    scale = jnp.array([0.5, -1.0, 0.0])
    with programs_for(platform):
        for verb, spec in ((jn.instance_norm, jn.InstanceNorm()), (jn.layer_norm, jn.LayerNorm())):
            y = jax.jit(lambda x, verb=verb: verb(x, scale, scale_offset=1.0))(x)
            assert oracle.ulps(y, oracle.normalize(spec, x, 1 + np.asarray(scale))) < 32
            np.testing.assert_array_equal(y[..., 1], 0)


def test_ghosts_have_the_offset():
    x = jax.random.normal(KEY, (6, 4))
    spec = jn.BatchNorm(virtual_batch_size=3, scale_offset=2.0)
    params, state = spec.init(4)
    y, _ = spec.apply(params._replace(scale=params.scale + 1), state, x, train=True)
    want = 2 * np.concatenate([oracle.normalize(jn.BatchNorm(), half) for half in (x[:3], x[3:])])
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("verb", [jn.layer_norm, jn.rms_norm, jn.instance_norm])
def test_scales_of_each_position_are_kept_as_they_are(verb):
    """Were the offset added before the derivative, a float32 copy of them would be kept."""
    x, scale = jax.random.normal(KEY, (2, 4, 16, 32), jnp.bfloat16)

    def kept(offset):
        _, pull = jax.vjp(lambda x, s: verb(x, s, scale_offset=offset), x, scale)
        return sorted((leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(pull))

    assert kept(1.0) == kept(0.0)
    assert (x.shape, "float32") not in kept(1.0)


# dtype


@pytest.mark.parametrize("spec", EVERY_SPEC, ids=str)
@pytest.mark.parametrize(
    ("given", "wanted"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "float32")]
)
def test_y_has_the_dtype_that_is_asked_for(spec, given, wanted):
    """One rounding of y in float32, and none where that is wanted. The state stays what it is."""
    x = jax.random.normal(KEY, (3, 5, 4), given) + jnp.asarray(2, given)
    params, state = spec.init(4)
    y, new = dataclasses.replace(spec, dtype=wanted).apply(params, state, x, train=True)
    full, full_new = spec.apply(params, state, x.astype(jnp.float32), train=True)
    assert y.dtype == wanted
    close(y.astype(jnp.float32), full.astype(wanted).astype(jnp.float32), 2e-6 if wanted == "float32" else 8e-3)
    close(new, full_new)
    assert jax.tree.map(jnp.result_type, new) == jax.tree.map(jnp.result_type, state)


@one_each
def test_a_wider_y_widens_the_arithmetic(case):
    with jax.enable_x64(True):
        params, state = case.params(jnp.float64)
        x = case.data(jnp.float32)
        y, _ = with_options(case, dtype=jnp.float64).spec.apply(params, state, x, train=True)
        assert y.dtype == jnp.float64
        np.testing.assert_allclose(y, case.exact(x, params), rtol=1e-11, atol=1e-11)


def test_where_float64_is_off_y_is_as_wide_as_jax_has_it():
    assert jn.layer_norm(jnp.arange(4.0), dtype=jnp.float64).dtype == jnp.float32


def test_a_complex_y_of_real_data():
    x = jax.random.normal(KEY, (6, 4))
    y = jn.layer_norm(x, dtype=jnp.complex64)
    assert y.dtype == jnp.complex64
    np.testing.assert_allclose(y, jn.layer_norm(x), rtol=1e-5, atol=1e-6)


def test_a_scaler_gives_the_dtype_that_is_asked_for():
    x = jax.random.normal(KEY, (8, 3)) + 1e4
    for kind in ("standard", "minmax"):
        scaler = jn.FeatureScaler(kind=kind)
        y, state = scaler.apply(*scaler.init(3), x, train=True)
        narrow, same = jn.FeatureScaler(kind=kind, dtype="bfloat16").apply(*scaler.init(3), x, train=True)
        np.testing.assert_array_equal(narrow, y.astype(jnp.bfloat16))
        close(same, state, 0)


def test_specs_with_one_dtype_are_equal_whatever_it_is_called():
    specs = [jn.LayerNorm(dtype=dtype) for dtype in ("bfloat16", jnp.bfloat16, jnp.dtype("bfloat16"))]
    assert len({*specs, jn.LayerNorm(dtype="float32")}) == 2
    assert jn.LayerNorm(scale_offset=1) == jn.LayerNorm(scale_offset=np.float32(1.0))


# implementation


@pytest.mark.parametrize("case", [c for c in CASES if not c.name.startswith(("layer", "rms"))], ids=lambda c: c.name)
def test_kernels_are_for_layer_and_rms_norm(case):
    params, state = case.params()
    x = case.data()
    apply = lambda name: with_options(case, implementation=name).spec.apply(params, state, x, train=True)
    np.testing.assert_array_equal(apply("xla")[0], apply(None)[0])
    with pytest.raises(ValueError, match="implementation='pallas' is for layer and RMS norm"):
        apply("pallas")
