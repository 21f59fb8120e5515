"""What drop-ins take beside Flax's arguments: `scale_offset`, and batch norm `ddof`; of nnx and of linen alike."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxnorm as jn

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (4, 6, 8)) + 2
NAMES = ["BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm"]
EXTRA = {"GroupNorm": {"num_groups": 2}}

names = pytest.mark.parametrize("name", NAMES)


def of_linen(name, **kwargs):
    train = {"use_running_average": False} if name == "BatchNorm" else {}
    module = getattr(jn.linen, name)(**EXTRA.get(name, {}), **train, **kwargs)
    variables = module.init(KEY, X)
    y, new = module.apply(variables, X, mutable=["batch_stats"])
    return variables["params"]["scale"], y, new.get("batch_stats")


def of_nnx(name, **kwargs):
    module = getattr(jn.nnx, name)(8, **EXTRA.get(name, {}), **kwargs, rngs=nnx.Rngs(0))
    y = module(X)
    return module.scale[...], y, {n: getattr(module, n)[...] for n in ("mean", "var") if name == "BatchNorm"}


both = pytest.mark.parametrize("run", [of_linen, of_nnx], ids=["linen", "nnx"])


@both
@names
def test_an_offset_is_there_from_the_start(run, name):
    """By default, offset and scale are 1 together; an initializer that is given has the word."""
    scale, y, _ = run(name, scale_offset=1.0)
    _, want, _ = run(name)
    np.testing.assert_array_equal(scale, 0)
    np.testing.assert_array_equal(y, want)
    scale, y, _ = run(name, scale_offset=1.0, scale_init=nn.initializers.constant(0.5))
    np.testing.assert_array_equal(scale, 0.5)
    np.testing.assert_allclose(y, 1.5 * want, rtol=1e-5, atol=1e-6)


@both
def test_an_unbiased_running_variance(run):
    var = np.asarray(X, float).var((0, 1))
    for ddof in (0, 1):
        _, _, stats = run("BatchNorm", momentum=0.5, ddof=ddof)
        np.testing.assert_allclose(stats["var"], 0.5 + 0.5 * var * 24 / (24 - ddof), rtol=1e-5)


def test_an_unbiased_variance_in_recalibration():
    norm = jn.nnx.BatchNorm(8, ddof=1, rngs=nnx.Rngs(0))
    jn.nnx.recalibrate(norm, [X[:1], X[1:]])
    np.testing.assert_allclose(norm.var[...], np.asarray(X, float).var((0, 1), ddof=1), rtol=1e-5)
    module = jn.linen.BatchNorm(use_running_average=True, ddof=1)
    variables = jn.linen.recalibrate(module, module.init(KEY, X), [X[:1], X[1:]])
    np.testing.assert_allclose(variables["batch_stats"]["var"], np.asarray(X, float).var((0, 1), ddof=1), rtol=1e-5)


@names
def test_a_class_of_a_user_keeps_its_own_constructor(name):
    base = getattr(jn.nnx, name)

    class Eight(base):
        def __init__(self, *, rngs):
            super().__init__(8, **EXTRA.get(name, {}), scale_offset=1.0, rngs=rngs)

    norm = Eight(rngs=nnx.Rngs(0))
    assert list(inspect.signature(Eight.__init__).parameters) == ["self", "rngs"]
    np.testing.assert_array_equal(norm(X), of_nnx(name)[1])


@both
def test_modules_take_a_scale_in_the_call_beside_an_offset(run):
    spec = jn.LayerNorm(use_scale=False, use_bias=False, scale_offset=1.0)
    shift = jnp.linspace(-1, 1, 4).reshape(4, 1, 1)
    if run is of_linen:
        module = jn.linen.Norm(spec)
        y = module.apply(module.init(KEY, X, train=True), X, train=True, scale=shift)
    else:
        y = jn.nnx.Norm(spec, 8)(X, scale=shift)
    np.testing.assert_allclose(y, (1 + shift) * jn.layer_norm(X), rtol=1e-5, atol=1e-6)


@both
def test_modules_start_where_the_spec_does(run):
    spec = jn.RMSNorm(scale_offset=1.0, dtype=jnp.bfloat16)
    if run is of_linen:
        module = jn.linen.Norm(spec, train=True)
        variables = module.init(KEY, X)
        scale, y = variables["params"]["scale"], module.apply(variables, X)
    else:
        module = jn.nnx.Norm(spec, 8)
        scale, y = module.scale[...], module(X)
    np.testing.assert_array_equal(scale, 0)
    np.testing.assert_array_equal(y, jn.rms_norm(X).astype(jnp.bfloat16))
