"""Compiled programs for a CPU, counted: passes over the data, temporaries, collectives. No timings.

And what is compiled for other platforms, run on a CPU: the same accuracy, whichever way statistics are found.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import optimized
from jax import export
from jax.test_util import check_grads

import jaxnorm as jn
from benchmarks import hlo
from benchmarks.accuracy import hostile
from benchmarks.cases import Case
from benchmarks.libraries import ours
from benchmarks.speed import with_vjp
from jaxnorm import _find

# Passes over x forward, and with the backward pass: Σ d, Σ d² and y; Σ g, Σ d g and dx.
CASES = {
    "batch": (4, 10),
    "instance": (4, 10),
    "group": (4, 10),
    "layer": (4, 10),
    "rms": (3, 8),
}
# With the backward pass in bfloat16: later compilers read more often, and still write nothing down.
LATER = {"instance": 11, "group": 11, "layer": 13, "rms": 10} if jax.__version_info__ >= (0, 11) else {}


def compiled(f, *args):
    """As users have it."""
    return optimized(f).lower(*args).compile()


def units(case, program):
    """Passes over x, and full-size temporaries."""
    return hlo.traffic(program.as_text()).moved / case.bytes, program.memory_analysis().temp_size_in_bytes / case.bytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("channel_axis", [-1, 1])
@pytest.mark.parametrize("kind", CASES)
def test_passes_over_the_data_on_a_cpu(kind, channel_axis, dtype):
    shape = (4096, 768) if kind in ("layer", "rms") else (8, 28, 28, 128) if channel_axis == -1 else (8, 128, 28, 28)
    case = Case(kind, shape, dtype, channel_axis)
    if kind in ("layer", "rms") and channel_axis == 1:
        pytest.skip("rows have no layout")
    g, (x, scale, bias, *state) = case.data()
    # The running statistics as constants: those of a new state, of which the program need not ask whether they are far.
    apply = lambda x, scale, bias: ours(case)(x, scale, bias, *state)
    both = lambda g, x, scale, bias: with_vjp(apply)(g, x, scale, bias)
    programs = compiled(apply, x, scale, bias), compiled(both, g, x, scale, bias)
    forward, backward = CASES[kind]
    limits = forward, LATER.get(kind, backward) if dtype == "bfloat16" else backward
    for program, most in zip(programs, limits, strict=True):
        passes, temporaries = units(case, program)
        assert passes < 1.06 * most + 0.2
        assert temporaries < 0.2


@pytest.mark.parametrize("shape", [(256, 1, 1, 512), (256, 512)])
def test_axes_of_size_one_cost_nothing(shape):
    case = Case("batch", shape)
    g, args = case.data()
    passes, _ = units(case, compiled(with_vjp(ours(case)), g, *args))
    assert passes < 10.5


PLATFORMS = ["cpu", "cuda", "tpu"]


@pytest.fixture(params=PLATFORMS)
def platform(request, monkeypatch):
    """Statistics as programs for a platform find them."""

    def of_platform(*args, default, **branches):
        return branches.get(request.param, default)(*args)

    jax.clear_caches()
    monkeypatch.setattr(_find, "by_platform", of_platform)
    yield request.param
    jax.clear_caches()


HOSTILE = {
    "batch": jn.BatchNorm(),
    "instance": jn.InstanceNorm(),
    "instance channels first": jn.InstanceNorm(channel_axis=1),
    "layer": jn.LayerNorm(),
    "layer whole": jn.LayerNorm(axis=(1, 2, 3)),
    "group": jn.GroupNorm(groups=2),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_inputs_on_every_platform(name, platform):
    """Forward alone, and with statistics kept for the backward pass."""
    spec, shape = HOSTILE[name], (32, 28, 28, 8)
    state = spec.init(spec.features(shape))[1]
    norm = lambda x: spec.apply(jn.Affine(), state, x, train=True)[0]
    forward, kept = optimized(norm), optimized(lambda x: jax.vjp(norm, x)[0])
    errors = {}
    for what, x in hostile(shape).items():
        x = x.astype(np.float32)
        want = oracle.normalize(spec, x)
        errors[what] = max(oracle.ulps(f(x), want) for f in (forward, kept))
    assert max(errors.values()) < 16, errors


@pytest.mark.once
@pytest.mark.parametrize("name", HOSTILE)
def test_derivatives_on_every_platform(name, platform):
    spec = HOSTILE[name]
    x = jax.random.normal(jax.random.key(0), (4, 6, 5, 4)) + 2
    state = spec.init(spec.features(x.shape))[1]
    check_grads(lambda x: jnp.sin(spec.apply(jn.Affine(), state, x, train=True)[0]), (x,), 2, rtol=0.02, atol=0.02)


@pytest.fixture
def looks():
    """A list with an entry for each look at the data."""
    seen, look = [], _find.look

    def watched(*args):
        seen.append(1)
        return look(*args)

    with pytest.MonkeyPatch.context() as patch, jax.disable_jit():
        patch.setattr(_find, "look", watched)
        yield seen


@pytest.mark.parametrize(("mean", "count"), [(0.0, 2), (1e4, 1)])
def test_a_good_running_mean_is_looked_about_at_once(mean, count, looks):
    """At a large mean, the guard of a CPU would look twice: about 0, and about the mean."""
    x = jax.random.normal(jax.random.key(0), (64, 8)) + 1e4
    y, _ = jn.batch_norm(x, jn.RunningStats(jnp.full(8, mean), jnp.ones(8)), train=True)
    np.testing.assert_allclose(y.std(0), 1, rtol=1e-3)
    assert len(looks) == count


@pytest.mark.parametrize("size", [1e30, 1e25, 3e38])
def test_what_overflows_about_its_mean_is_not_tried_again(size, looks):
    """It cost eight looks at all the data, whatever the other rows are."""
    x = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    x[3] = size * np.sign(x[3])
    y = jn.layer_norm(x)
    assert np.isnan(y[3]).all()
    assert oracle.ulps(np.delete(y, 3, 0), oracle.normalize(jn.LayerNorm(), np.delete(x, 3, 0))) < 16
    assert len(looks) <= 2


def test_one_export_serves_all_platforms():
    case = Case("batch", (8, 4))
    _, args = case.data()
    exported = export.export(jax.jit(ours(case)), platforms=["cpu", "cuda", "tpu"])(*args)
    y, _ = exported.call(*args)
    np.testing.assert_allclose(y, ours(case)(*args)[0], rtol=1e-6)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_batch_of_any_size_is_exported(name):
    (batch,) = export.symbolic_shape("batch")
    spec, shape = HOSTILE[name], (6, 4, 4, 8)
    state = spec.init(spec.features(shape))[1]
    norm = jax.jit(lambda x: spec.apply(jn.Affine(), state, x, train=True)[0])
    exported = export.export(norm)(jax.ShapeDtypeStruct((batch, *shape[1:]), jnp.float32))
    x = jax.random.normal(jax.random.key(0), shape)
    np.testing.assert_allclose(exported.call(x), norm(x), atol=1e-6)


def test_a_bfloat16_gradient_is_rounded_once():
    """Twice, where JAX adds what comes back through y and through its statistics."""
    x = jax.random.normal(jax.random.key(0), (64, 8), jnp.bfloat16)
    g = jax.random.normal(jax.random.key(1), (64, 8), jnp.bfloat16)
    pull = lambda x, g: jax.vjp(lambda x: jn.batch_norm(x, None, train=True)[0], x)[1](g.astype(x.dtype))[0]
    exact = jax.jit(pull)(x.astype(jnp.float32), g)
    rounded = jax.jit(pull)(x, g)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rounded, exact.astype(jnp.bfloat16))
