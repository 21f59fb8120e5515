"""What is said of arguments that do not fit: it names the function, the argument as written, and what to write instead.

And what looked like a mistake to the library alone, and works.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from models import BN, KEY, ROWS, SPECS, X, each_name, says

import jaxnorm as jn

STATE = BN.init(8)[1]
VERBS = {
    "batch_norm": partial(jn.batch_norm, X, STATE, train=True),
    "instance_norm": partial(jn.instance_norm, X),
    "layer_norm": partial(jn.layer_norm, X),
    "rms_norm": partial(jn.rms_norm, X),
    "group_norm": partial(jn.group_norm, X, groups=2),
}


def apply(spec, x=X):
    return spec.apply(*spec.init(x.shape[-1]), x, train=True)


def drop_in(library, name, features=8, **arguments):
    """A drop-in as a function of data and mask, in training."""
    arguments |= {"num_groups": 2} if name == "GroupNorm" else {}
    if library == "nnx":
        return getattr(jn.nnx, name)(features, **arguments, rngs=nnx.Rngs(0))
    arguments |= {"use_running_average": False} if name == "BatchNorm" else {}
    module = getattr(jn.linen, name)(**arguments)
    return lambda x, **kwargs: module.init_with_output(KEY, x, **kwargs)[0]


libraries = pytest.mark.parametrize("library", ["linen", "nnx"])


@pytest.mark.parametrize("value", [None, "1e-5"], ids=repr)
@pytest.mark.parametrize("verb", VERBS)
def test_an_epsilon_that_is_no_number(verb, value):
    """None is PyTorch's default for RMS norm, and "1e-5" what YAML makes of 1e-5."""
    says(lambda: VERBS[verb](epsilon=value), verb, "epsilon", re.escape(repr(value)))


@pytest.mark.parametrize("value", [None, "1e-5"], ids=repr)
@each_name
def test_an_epsilon_of_a_spec_that_is_no_number(name, value):
    says(lambda: apply(SPECS[name](epsilon=value)), "(?i)" + name.replace("Norm", "_?norm"), "epsilon")


@libraries
@pytest.mark.parametrize("value", [None, "1e-5"], ids=repr)
@each_name
def test_an_epsilon_of_a_drop_in_that_is_no_number(name, value, library):
    says(lambda: drop_in(library, name, epsilon=value)(X), name, "epsilon")


def test_a_momentum_that_is_no_number():
    says(lambda: VERBS["batch_norm"](momentum="0.9"), "batch_norm", "momentum", "0.9")


@pytest.mark.parametrize(
    "axes", [np.array([1, 2]), {1, 2}, frozenset({2, 1}), [1, 2], range(1, 3), np.array([-1, 1])], ids=repr
)
def test_axes_are_sequences_sets_or_arrays_of_ints(axes):
    for norm in (jn.layer_norm, jn.rms_norm):
        np.testing.assert_array_equal(norm(X, axis=axes), norm(X, axis=(1, 2)))
    for found, want in zip(jn.moments(X, axes)[:3], jn.moments(X, (1, 2))[:3], strict=True):
        np.testing.assert_array_equal(found, want)
    for spec in (jn.LayerNorm, jn.RMSNorm):
        norm, tuples = spec(axis=axes, use_scale=False), spec(axis=(1, 2), use_scale=False)
        assert hash(norm) is not None
        assert norm == spec(axis=axes, use_scale=False)
        params, _ = norm.init(norm.features(X.shape))
        got = jax.jit(lambda spec, p, x: spec.apply(p, None, x, train=True)[0])(norm, params, X)
        np.testing.assert_array_equal(got, tuples.apply(tuples.init((5, 8))[0], None, X, train=True)[0])


@pytest.mark.parametrize("axes", [np.array([0, 1]), {0, 1}], ids=repr)
def test_batch_axes_are_sequences_sets_or_arrays_of_ints(axes):
    x = X.reshape(2, 2, 5, 8)
    for norm in (jn.instance_norm, partial(jn.group_norm, groups=2)):
        np.testing.assert_array_equal(norm(x, batch_axis=axes), norm(x, batch_axis=(0, 1)))


@pytest.mark.parametrize("axes", [np.array([1.0, 2.0]), {"a"}, np.array([True, False])], ids=repr)
def test_axes_of_anything_else(axes):
    says(lambda: jn.layer_norm(X, axis=axes), "layer_norm", "axis")


@pytest.mark.parametrize("spec", ["BatchNorm", "InstanceNorm", "GroupNorm"])
def test_several_channel_axes(spec):
    says(lambda: SPECS[spec](channel_axis=(1, 2)).init((3, 4)), spec, "channel_axis", r"\(1, 2\)")


@libraries
@each_name
def test_a_mask_of_a_drop_in_is_called_mask(name, library):
    norm = drop_in(library, name)
    never = (r"\bwhere has\b", r"\bwhere needs\b", r"where\[", r"\bwhere holds\b", r": where\b")
    for shape in ((4, 5, 7), (3,), (4, 5), (1, 4, 5, 8)):
        says(lambda shape=shape: norm(X, mask=np.ones(shape, bool)), name, r"\bmask\b", never=never)
    says(lambda: norm(X, mask=-np.ones(X.shape, np.float32)), name, r"\bmask\b", "-1", never=never)
    says(lambda: norm(X, mask=np.ones(X.shape, np.complex64)), name, r"\bmask\b", "complex", never=never)


@pytest.mark.parametrize("verb", VERBS)
def test_lengths_in_the_place_of_a_mask(verb):
    """With None appended they would be weights, and the padding included."""
    says(
        lambda: VERBS[verb](where=jnp.array([3, 5, 1, 2])),
        verb,
        "where",
        r"arange\(.*\) *< *.*\[:, None\]",
        never=(r"where\[\.\.\., None, None\]",),
    )
    says(lambda: VERBS[verb](where=jnp.ones(4, bool)), r"where\[\.\.\., None, None\]", never=("arange",))


def test_what_is_advised_for_lengths_works():
    lengths = jnp.array([3, 5, 1, 2])
    with jax.numpy_rank_promotion("allow"):
        where = (jnp.arange(5) < lengths[:, None])[..., None]
    y = jn.instance_norm(X, where=where)
    np.testing.assert_allclose(y[0, :3], jn.instance_norm(X[:1, :3])[0], rtol=1e-5, atol=1e-5)


def test_weights_of_no_weight_for_an_unbiased_variance():
    """Normalised weights sum to 1: with ddof=1, the running variance would never move."""
    where = jnp.full((16, 1), 1 / 16)
    says(lambda: jn.batch_norm(ROWS, STATE, train=True, ddof=1, where=where), "batch_norm", "ddof")
    # One example alone has no unbiased variance, and that is no mistake.
    _, new = jn.batch_norm(ROWS, STATE, train=True, ddof=1, where=jnp.arange(16)[:, None] == 0)
    np.testing.assert_array_equal(new.var, STATE.var)
    _, new = jn.batch_norm(ROWS, STATE, train=True, ddof=0, momentum=0.0, where=where)
    np.testing.assert_allclose(new.var, np.asarray(ROWS, float).var(0), rtol=1e-5)


def test_an_instance_norm_without_positions():
    """(N, C) has none: each number would be its own mean, and y the bias. Positions of size 1 may come to more."""
    says(lambda: jn.instance_norm(ROWS), "instance_norm", r"\(16, 8\)")
    says(lambda: apply(jn.InstanceNorm(), ROWS), "(?i)instance_?norm", r"\(16, 8\)")
    y = jn.instance_norm(ROWS[:, None, None], bias=2.0)
    np.testing.assert_array_equal(y, jnp.full((16, 1, 1, 8), 2.0))


def test_ghosts_of_a_batch_of_symbolic_size():
    spec = jn.BatchNorm(virtual_batch_size=4, momentum=0.9)
    params, state = spec.init(3)
    run = jax.jit(lambda x: spec.apply(params, state, x, train=True))
    (batch,) = export.symbolic_shape("4*b")
    exported = export.export(run)(jax.ShapeDtypeStruct((batch, 2, 3), jnp.float32))
    for examples in (4, 12):
        x = jax.random.normal(KEY, (examples, 2, 3)) + jnp.arange(examples, dtype=jnp.float32)[:, None, None]
        (y, new), (want, state_then) = exported.call(x), run(x)
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(new.mean, state_then.mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(new.var, state_then.var, rtol=1e-5)
        alone = np.asarray(x, float).reshape(-1, 4, 2, 3)
        exact = (alone - alone.mean((1, 2), keepdims=True)) / np.sqrt(alone.var((1, 2), keepdims=True) + 1e-5)
        np.testing.assert_allclose(y, exact.reshape(y.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("verb", VERBS)
def test_did_you_mean_epsilon_or_where_in_a_verb(verb):
    says(lambda: VERBS[verb](eps=1e-5), verb, "epsilon", error=TypeError)
    says(lambda: VERBS[verb](mask=X > 0), verb, r"\bwhere\b", error=TypeError)


@each_name
def test_did_you_mean_epsilon_or_where_in_a_spec(name):
    says(lambda: SPECS[name](eps=1e-5), name, "epsilon", error=TypeError)
    norm = SPECS[name]()
    says(lambda: norm.apply(*norm.init(8), X, train=True, mask=X > 0), r"\bwhere\b", error=TypeError)


def test_did_you_mean_groups():
    says(lambda: jn.group_norm(X, num_groups=2), "group_norm", r"(?<!num_)groups", error=TypeError)
    says(lambda: jn.GroupNorm(num_groups=2), "GroupNorm", r"(?<!num_)groups", error=TypeError)


def test_other_unknown_arguments_are_refused_as_ever():
    says(lambda: jn.layer_norm(X, nonsense=1), "nonsense", error=TypeError)
    says(lambda: jn.LayerNorm(nonsense=1), "nonsense", error=TypeError)


def test_a_scaler_takes_the_state_first():
    scaler = jn.FeatureScaler()
    y, state = scaler.apply(*scaler.init(8), ROWS, train=True)
    says(lambda: scaler.inverse(y, state), "inverse", r"inverse\(state, \w+\)|swapped")
    np.testing.assert_allclose(scaler.inverse(state, y), ROWS, rtol=1e-5, atol=1e-5)
