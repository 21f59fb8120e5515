"""Errors: at trace time, with the fact, the value and the remedy."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import says

import jaxnorm as jn

X = jnp.ones((8, 64, 32))
IMAGES = jnp.ones((8, 5, 5, 64))
BN = jn.BatchNorm()
PARAMS, STATE = BN.init(64)
LN = jn.LayerNorm()


def apply(spec, params, state, x, **kwargs):
    return lambda: spec.apply(params, state, x, **{"train": True, **kwargs})


CASES = {
    "features": (
        apply(BN, PARAMS, STATE, X),
        ValueError,
        "BatchNorm(channel_axis=-1) was initialised for 64 features, but x has shape (8, 64, 32): its axis -1 has 32. "
        "For channels-first data, use channel_axis=1.",
    ),
    "features first": (
        apply(jn.InstanceNorm(channel_axis=1), PARAMS, None, IMAGES),
        ValueError,
        "For channels-last data, use channel_axis=-1.",
    ),
    "features of a layer": (
        apply(jn.LayerNorm(axis=(1, 2)), jn.LayerNorm(axis=(1, 2)).init((3, 4))[0], None, X),
        ValueError,
        "LayerNorm(axis=(1, 2)) was initialised for (3, 4) features, but x has shape (8, 64, 32): its axes "
        "1, 2 have 64, 32.",
    ),
    "swapped": (apply(BN, STATE, PARAMS, X), TypeError, "params and state are swapped"),
    "swapped without state": (apply(LN, None, PARAMS, X), TypeError, "params and state are swapped"),
    "params as a dict": (
        apply(BN, {"scale": 1}, STATE, X),
        TypeError,
        "params is a dict. It must be a jaxnorm.Affine: jaxnorm.Affine(**params)",
    ),
    "no params": (apply(LN, None, None, X), TypeError, "params is a NoneType"),
    "state as a dict": (apply(BN, PARAMS, STATE._asdict(), IMAGES), TypeError, "jaxnorm.RunningStats(**state)"),
    "a class for a spec": (lambda: jn.nnx.Norm(jn.BatchNorm, 3), TypeError, "is not a spec: write BatchNorm()"),
    "a class for a spec of linen": (
        lambda: jn.linen.Norm(jn.BatchNorm).init(jax.random.key(0), X, train=True),
        TypeError,
        "is not a spec: write BatchNorm()",
    ),
    "features for a spec": (lambda: jn.nnx.Norm(3, BN), TypeError, "nnx.Norm: spec=3 is not a spec, as jaxnorm.Batch"),
    "state for none": (apply(LN, jn.Affine(), STATE, X), TypeError, "LayerNorm has none: pass None"),
    "no state": (apply(BN, PARAMS, None, IMAGES, train=False), ValueError, "state is None, but evaluation needs"),
    "state of other size": (
        lambda: jn.batch_norm(X, STATE, train=True),
        ValueError,
        "state.mean has shape (64,), but axis 2 of x, of shape (8, 64, 32), holds 32 channels",
    ),
    "real state": (
        lambda: jn.batch_norm(IMAGES.astype(jnp.complex64), STATE, train=True),
        TypeError,
        "Initialise with param_dtype='complex64'",
    ),
    "one scale per example": (
        lambda: jn.instance_norm(IMAGES, jnp.ones((8, 64))),
        ValueError,
        "scale has shape (8, 64) and x has shape (8, 5, 5, 64). scale is a scalar, has shape (64,) (axis 3 of x), or "
        "has 4 dimensions that broadcast to x. For one scale per example: scale.reshape(8, 1, 1, 64)",
    ),
    "scale enlarges": (lambda: jn.layer_norm(X[:1], jnp.ones((8, 1, 32))), ValueError, "scale has shape (8, 1, 32)"),
    "complex scale": (lambda: jn.layer_norm(X, 1j), TypeError, "y would lose its imaginary part"),
    "integers": (lambda: jn.rms_norm(jnp.arange(4)), TypeError, "x has dtype int32. Convert it to floating point"),
    "booleans": (lambda: jn.layer_norm(jnp.ones(4, bool)), TypeError, "x has dtype bool"),
    "groups at init": (
        lambda: jn.GroupNorm(groups=5).init(64),
        ValueError,
        "groups=5 does not divide 64 channels. These do: [1, 2, 4, 8, 16, 32, 64]",
    ),
    "groups": (lambda: jn.group_norm(X, groups=5), ValueError, "groups=5 does not divide 32 channels"),
    "no groups": (lambda: jn.GroupNorm(groups=0).init(64), ValueError, "groups=0 is not a positive int"),
    "a name twice": (
        lambda: jn.batch_norm(IMAGES, None, train=True, axis_name=("a", "a")),
        ValueError,
        "axis_name=('a', 'a') names an axis twice",
    ),
    "an axis for a name": (
        lambda: jn.moments(IMAGES, axis_name=0),
        TypeError,
        "axis_name=0 is not a name",
    ),
    "unbound name": (
        lambda: jn.batch_norm(IMAGES, None, train=True, axis_name="devices"),
        NameError,
        "axis_name='devices' is not bound here. Call it under jax.vmap(..., axis_name='devices')",
    ),
    "traced train": (
        lambda: jax.jit(lambda train: BN.apply(PARAMS, STATE, IMAGES, train=train))(True),
        TypeError,
        "train is traced, but it chooses the program: use jax.jit(..., static_argnames='train')",
    ),
    "traced train without state": (
        lambda: jax.jit(lambda train: LN.apply(jn.Affine(), None, X, train=train))(True),
        TypeError,
        "train is traced",
    ),
    "train": (apply(LN, jn.Affine(), None, X, train=None), TypeError, "train=None is not True or False"),
    "where of wrong rank": (
        lambda: jn.instance_norm(IMAGES, where=jnp.ones((8, 5, 5), bool)),
        ValueError,
        "where has shape (8, 5, 5) and x has shape (8, 5, 5, 64). where needs the 4 dimensions of x, each of the same "
        "size or 1: where[..., None]",
    ),
    "where enlarges": (lambda: jn.layer_norm(X[:1], where=X > 0), ValueError, "where has shape (8, 64, 32)"),
    "negative weights": (lambda: jn.layer_norm(X, where=-X), ValueError, "where holds -1.0. Weights are 0 or more"),
    "complex weights": (lambda: jn.layer_norm(X, where=X.astype(complex)), TypeError, "where has dtype complex64"),
    "sizes of a layer": (
        lambda: jn.LayerNorm(axis=(1, 2, 3)).init(64),
        ValueError,
        "LayerNorm.init(64): axis 1, 2, 3 of x are 3 normalized axes, but there are 1 sizes. Give the shape",
    ),
    "features as a float": (lambda: BN.init(64.0), TypeError, "BatchNorm.init(64.0): features is a number of channels"),
    "integer parameters": (lambda: BN.init(64, jnp.int32), TypeError, "param_dtype=int32 is not floating point"),
    "axis": (lambda: jn.instance_norm(X, channel_axis=3), ValueError, "channel_axis=3 is out of range: x has 3"),
    "axis of a spec": (apply(jn.LayerNorm(axis=3), jn.Affine(), None, X), ValueError, "LayerNorm normalizes axis 3"),
    "axis as a string": (lambda: jn.layer_norm(X, axis="C"), TypeError, "axis='C' is not an int"),
    "channel in the batch": (
        lambda: jn.instance_norm(X, channel_axis=1, batch_axis=(0, 1)),
        ValueError,
        "channel_axis=1 is among batch_axis=(0, 1)",
    ),
    "negative epsilon": (lambda: jn.layer_norm(X, epsilon=-1e-5), ValueError, "epsilon=-1e-05 is not 0 or more"),
    "nan epsilon": (lambda: jn.layer_norm(X, epsilon=np.nan), ValueError, "epsilon=nan is not 0 or more"),
    "several epsilons": (
        lambda: jn.layer_norm(X, epsilon=jnp.ones(2)),
        ValueError,
        "epsilon has shape (2,). It is one number; for several, jax.vmap over them",
    ),
    "infinite weights": (
        lambda: jn.layer_norm(X, where=X * jnp.inf),
        ValueError,
        "where holds inf. Weights are finite",
    ),
    "a set of names": (lambda: jn.moments(X, axis_name={"a"}), TypeError, "axis_name={'a'} is not a name"),
    "ddof": (lambda: jn.batch_norm(IMAGES, STATE, train=True, ddof=0.5), ValueError, "ddof=0.5 is not an int of at"),
    "no count": (
        lambda: jn.batch_norm(IMAGES, STATE, train=True, momentum=None),
        ValueError,
        "momentum=None averages all updates equally, and has to know how many there were",
    ),
    "integer state": (
        lambda: jn.batch_norm(IMAGES, STATE._replace(mean=jnp.zeros(64, int)), train=True),
        TypeError,
        "state.mean is of int32. It is an array of inexact numbers",
    ),
    "complex variance": (
        lambda: jn.batch_norm(IMAGES, STATE._replace(var=jnp.ones(64, complex)), train=True),
        TypeError,
        "state.var is of complex64",
    ),
    "state of lists": (
        lambda: jn.batch_norm(IMAGES, STATE._replace(mean=[0.0] * 64), train=True),
        TypeError,
        "state.mean is of list",
    ),
    "momentum": (
        lambda: jn.batch_norm(IMAGES, STATE, train=True, momentum=1.5),
        ValueError,
        "momentum=1.5 is not between 0 and 1",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_errors(name):
    call, error, words = CASES[name]
    says(call, re.escape(words), error=error)


@pytest.mark.parametrize("name", ["features", "swapped", "one scale per example", "where of wrong rank", "integers"])
def test_errors_come_when_tracing(name):
    call, error, _ = CASES[name]
    with pytest.raises(error):
        jax.eval_shape(call)


def test_traced_bad_numbers_show():
    """What is not known when tracing can't be an error: a weight below 0, and a variance + ε below 0, give NaN."""
    weights = jnp.ones(X.shape).at[0, 0].set(-1.0)
    y = jax.jit(lambda w: jn.layer_norm(X, where=w))(weights)
    assert np.isnan(y[0, 0]).all()
    assert np.isnan(y).sum() == X.shape[-1]
    assert np.isnan(jax.jit(lambda w: jn.layer_norm(X, where=w))(-jnp.ones(X.shape))).all()
    state = jn.BatchNorm().init(X.shape[-1])[1]
    _, new = jax.jit(lambda w: jn.batch_norm(X, state, train=True, where=w))(-jnp.ones(X.shape))
    chex.assert_trees_all_equal(new, state)
    assert np.isnan(jax.jit(lambda e: jn.layer_norm(X, epsilon=e))(-10.0)).all()
