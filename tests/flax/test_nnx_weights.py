"""Layers of nnx by normalized weights, which stay what they are, and whose scales train."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from references import close

import jaxnorm as jn

pytestmark = pytest.mark.long
X = jax.random.normal(jax.random.key(0), (16, 3))


class Inner(nnx.Module):
    """Layers in a list, one with a state of its own."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)])
        self.norm = jn.nnx.Norm(jn.BatchNorm(momentum=0.5), 8)

    def __call__(self, x):
        return self.layers[1](nnx.relu(self.norm(self.layers[0](x))))


def wrapped(norm, layer=None, **options):
    return getattr(jn.nnx, norm)(layer or Inner(nnx.Rngs(0)), rngs=nnx.Rngs(1), **options)


NORMS = ("SpectralNorm", "WeightNorm")
each = pytest.mark.parametrize("norm", NORMS)


@each
def test_the_weights_themselves_stay(norm):
    """Flax's are overwritten by normalized ones: after a step there is nothing to train but a direction."""
    model = wrapped(norm)
    before = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    first = model(X)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(model, nnx.Param)), before)
    assert first.shape == (16, 4)
    # What the layer within keeps is written to it, and not to a copy.
    bias = before["layer_instance"]["layers"][0]["bias"]
    close(model.layer_instance.norm.mean[...], 0.5 * ((X @ hat(model)).mean(0) + bias))


def hat(model):
    """The first kernel, as it was used the last time."""
    w = model.layer_instance.layers[0].kernel[...]
    if isinstance(model, jn.nnx.WeightNorm):
        return jn.weight_norm(w)
    return w / model.batch_stats[("layers", 0, "kernel", "sigma")][...]


@each
def test_under_jit_and_grad(norm):
    model, same = wrapped(norm), wrapped(norm)
    for _ in range(2):
        close(nnx.jit(lambda m: m(X))(model), same(X), 1e-5)
    jax.tree.map(
        lambda a, b: close(a, b, 1e-5), *(nnx.to_pure_dict(nnx.state(m, nnx.BatchStat)) for m in (model, same))
    )
    grads = nnx.grad(lambda m: jnp.sin(m(X)).sum())(model)
    for leaf in jax.tree.leaves(grads):
        assert jnp.isfinite(leaf).all()
    assert jnp.abs(grads["layer_instance"]["layers"][0]["kernel"][...]).max() > 1e-4


def test_scales_train():
    """In Flax's they are arrays, which no optimizer sees."""
    model = wrapped("WeightNorm")
    target = 3 * jnp.ones((16, 4))
    with jax.numpy_dtype_promotion("standard"):
        optimizer = nnx.Optimizer(model, optax.adam(3e-2), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            loss, grads = nnx.value_and_grad(lambda m: ((m(X) - target) ** 2).mean())(model)
            optimizer.update(model, grads)
            return loss

        losses = [float(step(model, optimizer)) for _ in range(60)]
    assert losses[-1] < 0.2 * losses[0]
    for scale in model.scales.values():
        assert isinstance(scale, nnx.Param)
        assert np.abs(scale[...] - 1).max() > 0.05


def test_evaluation_writes_nothing():
    """So that a compiled function may close over the model."""
    model = wrapped("SpectralNorm", nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    for _ in range(20):
        model(X)
    model.eval()
    u = jnp.copy(model.batch_stats[("kernel", "u")][...])
    y = jax.jit(lambda x: model(x))(X)
    np.testing.assert_array_equal(model.batch_stats[("kernel", "u")][...], u)
    w = np.asarray(model.layer_instance.kernel[...], float)
    close(y, np.asarray(X) @ (w / np.linalg.svd(w)[1][0]), 1e-4)


@each
def test_a_zero_kernel(norm):
    layer = nnx.Linear(3, 4, use_bias=False, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.zeros((3, 4))
    model = wrapped(norm, layer, epsilon=0.0)
    np.testing.assert_array_equal(model(X), 0)
    grads = nnx.grad(lambda m: m(X).sum())(model)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_a_matrix_alone():
    with pytest.raises(ValueError, match="error_on_non_matrix"):
        wrapped("SpectralNorm", nnx.Conv(3, 4, (2, 2), rngs=nnx.Rngs(0)), error_on_non_matrix=True)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_convolution_by_standardized_weights(scaled):
    """What linen's gives, and the kernel stays."""
    images = jax.random.normal(jax.random.key(2), (2, 6, 5, 3))
    layer = jn.nnx.StdConv(3, 8, (3, 3), strides=2, rngs=nnx.Rngs(0), scaled=scaled)
    kernel = jnp.copy(layer.kernel[...])
    params = {name: v[...] for name, v in nnx.state(layer, nnx.Param).items()}
    assert {*params} == {"kernel", "bias", *(["gain"] if scaled else [])}
    theirs = jn.linen.StdConv(8, (3, 3), strides=2, scaled=scaled)
    close(nnx.jit(lambda m, x: m(x))(layer, images), theirs.apply({"params": params}, images), 1e-6)
    np.testing.assert_array_equal(layer.kernel[...], kernel)
    grads = nnx.grad(lambda m: jnp.sin(m(images)).sum())(layer)
    # Nothing changes along the kernel itself, whose size does not count.
    np.testing.assert_allclose((grads["kernel"][...] * kernel).sum((0, 1, 2)), 0, atol=1e-3)
    assert isinstance(layer, nnx.Conv)
    assert isinstance(theirs, nn.Conv)


class Tied(nnx.Module):
    """One variable in two places, and what a call changes besides."""

    def __init__(self, rngs):
        self.first = nnx.Linear(4, 4, use_bias=False, rngs=rngs)
        self.second = nnx.Linear(4, 4, use_bias=False, rngs=rngs)
        self.first.kernel[...] *= 10
        self.second.kernel = self.first.kernel
        self.mean, self.calls = nnx.BatchStat(jnp.zeros(4)), 0

    def __call__(self, x):
        self.calls += 1
        y = self.second(self.first(x))
        self.mean = nnx.BatchStat(y.mean(0))
        return y


@each
def test_one_variable_in_several_places(norm):
    """And all else that a layer binds in its call stays bound."""
    ours, theirs = (getattr(of, norm)(Tied(nnx.Rngs(0)), rngs=nnx.Rngs(1)) for of in (jn.nnx, nnx))
    x = X[:, :1] * jnp.ones((1, 4))
    y = ours(x)
    close(y, theirs(x), 1e-5)
    assert ours.layer_instance.calls == 1
    close(ours.layer_instance.mean[...], y.mean(0), 1e-6)


class Pure(nnx.Module):
    def __init__(self, rngs):
        self.parts = nnx.List([nnx.Linear(4, 4, use_bias=False, rngs=rngs) for _ in range(2)])
        self.parts[1].kernel = self.parts[0].kernel

    def __call__(self, x):
        return self.parts[1](self.parts[0](x))


def test_closed_over_by_a_compiled_function():
    model = wrapped("WeightNorm", Pure(nnx.Rngs(0)))
    x = X[:, :1] * jnp.ones((1, 4))
    close(jax.jit(lambda x: model(x))(x), model(x), 1e-6)


def test_an_error_in_the_layer_leaves_the_weights():
    layer = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    kernel = jnp.copy(layer.kernel[...])
    with pytest.raises(TypeError, match="dot_general"):
        wrapped("WeightNorm", layer)(jnp.ones((2, 5)))
    np.testing.assert_array_equal(layer.kernel[...], kernel)


def test_scales_by_initializer_and_dtype():
    layer = nnx.Linear(3, 4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    model = wrapped("WeightNorm", layer, param_dtype=jnp.bfloat16, scale_init=nnx.initializers.normal())
    (scale,) = model.scales.values()
    assert scale.dtype == jnp.bfloat16
    assert np.abs(np.asarray(scale[...], float)).max() > 0
    model = wrapped("WeightNorm", nnx.Linear(3, 4, rngs=nnx.Rngs(0)), feature_axes=(-1, 1))
    assert [scale.shape for scale in model.scales.values()] == [(4,)]


def test_a_view_evaluates():
    model = wrapped("SpectralNorm", nnx.Linear(3, 4, rngs=nnx.Rngs(0)))
    u = jnp.copy(model.batch_stats[("kernel", "u")][...])
    nnx.view(model, use_running_average=True)(X)
    np.testing.assert_array_equal(model.batch_stats[("kernel", "u")][...], u)
