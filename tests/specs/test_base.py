"""Specs as values: pytrees, equality, hashing, printing, copying."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import EVERY_SPEC

import jaxnorm as jn

every = pytest.mark.parametrize("spec", EVERY_SPEC, ids=lambda s: type(s).__name__)


@every
def test_one_protocol(spec):
    assert isinstance(spec, jn.Spec)
    params, state = spec.init(4)
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))
    y, new = spec.apply(params, state, x, train=True)
    assert y.shape == x.shape
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert isinstance(params, tuple)
    assert {"scale", "bias"} <= {*params._fields}
    first = 0 if isinstance(spec, jn.GlobalResponseNorm) else 1
    np.testing.assert_array_equal(params.scale, np.full(4, first) if spec.use_scale else None)
    y, _ = spec.apply(params, state, x, train=False, where=jnp.ones((2, 3, 1), bool))
    assert y.dtype == x.dtype


@every
def test_numbers_are_leaves_and_the_rest_is_structure(spec):
    # Without running statistics a momentum means nothing.
    names = ("alpha", "beta", "d_max", "epsilon", "k", "momentum", "r_max")
    names = ("epsilon",) if spec == jn.InstanceNorm() else names
    numbers = [getattr(spec, name, None) for name in names]
    assert sorted(jax.tree.leaves(spec)) == sorted(n for n in numbers if n is not None)
    assert jax.tree.map(lambda leaf: leaf, spec) == spec
    placeholder = jax.tree.map(lambda leaf: object(), spec)
    assert type(placeholder) is type(spec)


@every
def test_equality_and_hash(spec):
    same = dataclasses.replace(spec)
    assert (same, hash(same)) == (spec, hash(spec))
    other = dataclasses.replace(spec, use_scale=not spec.use_scale)
    assert spec != other
    assert hash(spec) != hash(other)
    if hasattr(spec, "epsilon"):
        other = dataclasses.replace(spec, epsilon=0.5)
        assert spec != other
        assert hash(spec) == hash(other)
        array = dataclasses.replace(spec, epsilon=jnp.array([1e-5, 1e-5]))
        assert array != spec
        assert array == dataclasses.replace(spec, epsilon=jnp.array([1e-5, 1e-5]))
    assert spec != "a spec"


@pytest.mark.parametrize("spec", [*EVERY_SPEC, jn.FeatureScaler(kind="minmax")], ids=repr)
def test_copies(spec):
    assert pickle.loads(pickle.dumps(spec)) == copy.deepcopy(spec) == spec
    assert eval(repr(spec), vars(jn)) == spec
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.channel_axis = 1


def test_static_fields_are_canonical():
    assert jn.LayerNorm(axis=[1, 2]) == jn.LayerNorm(axis=(1, 2))
    assert hash(jn.InstanceNorm(batch_axis=[0, 1], axis_name=["a"])) == hash(
        jn.InstanceNorm(batch_axis=(0, 1), axis_name=("a",))
    )
    assert jn.BatchNorm(channel_axis=np.int64(1)) == jn.BatchNorm(channel_axis=1)
    with pytest.raises(TypeError):
        jn.BatchNorm(1)


def test_a_spec_is_a_static_argument_too():
    x = jnp.ones((4, 3))
    params, state = jn.BatchNorm().init(3)
    traces = []

    def run(spec, x):
        traces.append(spec)
        return spec.apply(params, state, x, train=True)[0]

    jitted = jax.jit(run, static_argnums=0)
    for epsilon in (1e-5, 1e-5, 1e-3):
        jitted(jn.BatchNorm(epsilon=epsilon), x)
    assert len(traces) == 2


def test_a_traced_spec_has_no_hash():
    message = "Pass the spec to the transformed function as an argument"
    with pytest.raises(TypeError, match=message):
        jax.jit(hash)(jn.LayerNorm())
    with pytest.raises(TypeError, match=message):
        jax.jit(lambda a, b: a == b)(jn.LayerNorm(), jn.LayerNorm())


@pytest.mark.parametrize("dtype", [None, jnp.float32, jnp.bfloat16, jnp.complex64])
def test_init_dtypes(dtype):
    params, state = jn.BatchNorm().init(3, dtype)
    assert params.scale.dtype == params.bias.dtype == (dtype or jnp.float32)
    # A running average in bfloat16 would stand still: 0.99 m + 0.01 x rounds to m.
    assert state.mean.dtype == (jnp.complex64 if dtype == jnp.complex64 else jnp.float32)
    assert (state.var.dtype, state.weight_sum) == (jnp.float32, None)
    weight_sum = jn.BatchNorm(debias=True).init(3, dtype)[1].weight_sum
    assert (weight_sum.dtype, weight_sum.shape) == (jnp.float32, (3,))


def test_init_shapes():
    assert jn.LayerNorm(axis=(1, 3)).init((5, 7))[0].scale.shape == (5, 7)
    assert jn.BatchNorm(use_scale=False, use_bias=False).init(3)[0] == jn.Affine(None, None)
    assert jn.LayerNorm(axis=(3, 1)).features((2, 5, 6, 7)) == (5, 7)
    assert jn.InstanceNorm(channel_axis=1).features((2, 5, 6, 7)) == 5


def test_identity_is_the_affine_map():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 4))
    params, state = jn.Identity().init(4)
    np.testing.assert_array_equal(jn.Identity().apply(params, state, x, train=True)[0], x)
    y, _ = jn.Identity(channel_axis=1).apply(jn.Affine(jnp.arange(3.0), jnp.ones(3)), None, x, train=False)
    np.testing.assert_allclose(y, x * np.arange(3.0, dtype=np.float32).reshape(1, 3, 1, 1) + 1, rtol=1e-6)
