"""Statistics are accurate in every way in which a platform finds them, and looked for no more often than needed."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import HOSTILE, optimized
from jax.test_util import check_grads
from platforms import PLATFORMS, programs_for

import jaxnorm as jn
from benchmarks.accuracy import hostile
from jaxnorm._core import pivot


@pytest.fixture(params=PLATFORMS)
def platform(request):
    """Statistics as programs for a platform find them."""
    with programs_for(request.param):
        yield request.param


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
    seen, look = [], pivot.moments_about

    def watched(*args):
        seen.append(1)
        return look(*args)

    with pytest.MonkeyPatch.context() as patch, jax.disable_jit():
        patch.setattr(pivot, "moments_about", watched)
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
