"""Norms of whole models become parts of layers where that is exact, and it is said where it is not: linen and nnx."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxnorm as jn
from benchmarks.networks import LinenResNet18, LinenTransformer, NNXResNet18, NNXTransformer

IMAGES = jax.random.normal(jax.random.key(0), (2, 6, 6, 4)) * 2 + 1
ROWS = jax.random.normal(jax.random.key(0), (5, 4)) * 2 + 1


def linen_norm(kind):
    return {
        "flax": partial(nn.BatchNorm, use_running_average=True),
        "drop-in": partial(jn.linen.BatchNorm, use_running_average=True, scale_offset=0.5),
        "spec": partial(jn.linen.Norm, jn.BatchNorm(epsilon=1e-3), train=False),
    }[kind]()


def nnx_norm(kind, features):
    rngs = nnx.Rngs(0)
    return {
        "flax": lambda: nnx.BatchNorm(features, rngs=rngs),
        "drop-in": lambda: jn.nnx.BatchNorm(features, scale_offset=0.5, rngs=rngs),
        "spec": lambda: jn.nnx.Norm(jn.BatchNorm(epsilon=1e-3), features),
    }[kind]()


def conv(features=6, size=(3, 3), **options):
    """A convolution, of linen and of nnx with so many inputs."""
    return lambda: nn.Conv(features, size, **options), lambda inputs: nnx.Conv(
        inputs, features, size, rngs=nnx.Rngs(0), **options
    )


def transposed(features=6, **options):
    return lambda: nn.ConvTranspose(features, (3, 3), **options), lambda inputs: nnx.ConvTranspose(
        inputs, features, (3, 3), rngs=nnx.Rngs(0), **options
    )


DENSE = lambda: nn.Dense(6), lambda inputs: nnx.Linear(inputs, 6, rngs=nnx.Rngs(0))
GENERAL = (
    lambda: nn.DenseGeneral(6, (-2, -1)),
    lambda inputs: nnx.LinearGeneral((6, inputs), 6, axis=(-2, -1), rngs=nnx.Rngs(0)),
)
NORM = "norm"
# The layers of a model, its input, and what is folded into what.
FOLDS = {
    "dense": ((DENSE, NORM), ROWS, {1: 0}),
    "before dense": ((NORM, DENSE), ROWS, {0: 1}),
    "dense, twice": ((DENSE, NORM, nn.relu, DENSE, NORM), ROWS, {1: 0, 4: 3}),
    "between two layers": ((conv(), NORM, conv(padding="VALID")), IMAGES, {1: 0}),
    "before and after one": ((NORM, conv(padding="VALID"), NORM), IMAGES, {0: 1, 2: 1}),
    "several axes": ((GENERAL, NORM), IMAGES, {1: 0}),
    "conv": ((conv(), NORM), IMAGES, {1: 0}),
    "conv without bias": ((conv(use_bias=False), NORM), IMAGES, {1: 0}),
    "strided": ((conv(strides=2), NORM), IMAGES, {1: 0}),
    "dilated": ((conv(kernel_dilation=2), NORM), IMAGES, {1: 0}),
    "of a dilated input": ((conv(input_dilation=2, padding=1), NORM), IMAGES, {1: 0}),
    "grouped": ((conv(feature_group_count=2), NORM), IMAGES, {1: 0}),
    "before grouped": ((NORM, conv(feature_group_count=2, padding="VALID")), IMAGES, {0: 1}),
    "depthwise": ((conv(8, feature_group_count=4), NORM), IMAGES, {1: 0}),
    "before depthwise": ((NORM, conv(8, feature_group_count=4, padding=0)), IMAGES, {0: 1}),
    "before a circle": ((NORM, conv(padding="CIRCULAR")), IMAGES, {0: 1}),
    "before one position": ((NORM, conv(size=(1, 1))), IMAGES, {0: 1}),
    "1-D": ((conv(size=(3,)), NORM), IMAGES[0], {1: 0}),
    "transposed": ((transposed(strides=(2, 2)), NORM), IMAGES, {1: 0}),
    "transposed kernel": ((transposed(transpose_kernel=True), NORM), IMAGES, {1: 0}),
}


def linen_model(layers, kind):
    return nn.Sequential([linen_norm(kind) if v is NORM else v[0]() if isinstance(v, tuple) else v for v in layers])


def nnx_model(layers, kind, x):
    made = []
    for layer in layers:
        features = x.shape[-1]
        made.append(
            nnx_norm(kind, features) if layer is NORM else layer[1](features) if layer is not nn.relu else layer
        )
        x = made[-1](x)
    return nnx.Sequential(*made)


def trained(tree):
    """Variables as of a network that was trained: nothing is 0 or 1, variances are positive."""
    leaves, structure = jax.tree.flatten(tree)
    draw = lambda i, v: jax.random.uniform(jax.random.fold_in(jax.random.key(7), i), v.shape, v.dtype, 0.5, 1.5)
    return jax.tree.unflatten(structure, [draw(i, v) for i, v in enumerate(leaves)])


def close(got, want):
    assert got.dtype == want.dtype
    assert (want != 0).any()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * abs(want).max())


# With each layer one kind of norm, and another in nnx.
KINDS = dict.fromkeys(FOLDS, ("flax", "drop-in", "spec") * 2)
KINDS = {name: every[i % 3 :] for i, (name, every) in enumerate(KINDS.items())}


@pytest.mark.parametrize("name", FOLDS)
def test_linen_gives_the_same(name):
    kind, *_ = KINDS[name]
    layers, x, folds = FOLDS[name]
    model = linen_model(layers, kind)
    variables = trained(model.init(jax.random.key(1), x))
    apply, folded, report = jn.linen.fold(model, variables, x)
    assert report.folded == {f"layers_{norm}": f"layers_{layer}" for norm, layer in folds.items()}
    assert not report.kept
    assert sorted(folded) == ["params"]
    close(apply(folded, x), model.apply(variables, x))


@pytest.mark.parametrize("name", FOLDS)
def test_nnx_gives_the_same(name):
    _, kind, *_ = KINDS[name]
    layers, x, folds = FOLDS[name]
    model = nnx_model(layers, kind, x)
    nnx.update(model, trained(nnx.state(model)))
    before = jax.tree.leaves(nnx.state(model))
    folded, report = jn.nnx.fold(model, x)
    assert report.folded == {f"layers.{norm}": f"layers.{layer}" for norm, layer in folds.items()}
    assert not report.kept
    assert all(a is b for a, b in zip(before, jax.tree.leaves(nnx.state(model)), strict=True))
    assert not jax.tree.leaves(nnx.state(folded, nnx.BatchStat))
    model.eval()
    close(folded(x), model(x))
    close(nnx.merge(*nnx.split(folded))(x), model(x))


def instructions(f, x):
    return jax.jit(f).lower(x).compile().as_text().count(" = ")


@pytest.mark.long
@pytest.mark.parametrize("kind", ["flax", "spec"])
def test_a_resnet_of_linen(kind):
    """All but the norm of its input, whose convolution pads; fewer instructions are left."""
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    model = LinenResNet18(partial(linen_norm, kind), width=4)
    variables = trained(model.init(jax.random.key(1), x))
    apply, folded, report = jn.linen.fold(model, variables, jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert len(report.folded) == 20
    (first,) = report.kept
    assert report.folded["LinenBlock_2." + first] == "LinenBlock_2.Conv_0"
    assert "pads with zeros" in report.kept[first]
    close(apply(folded, x), model.apply(variables, x))
    assert instructions(lambda x: apply(folded, x), x) < instructions(lambda x: model.apply(variables, x), x)
    assert list(folded["batch_stats"]) == [first]


@pytest.mark.long
def test_a_resnet_of_nnx():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    model = NNXResNet18(partial(jn.nnx.BatchNorm), width=4, rngs=nnx.Rngs(0))
    nnx.update(model, trained(nnx.state(model)))
    folded, report = jn.nnx.fold(model, x)
    assert len(report.folded) == 20
    assert list(report.kept) == ["input"]
    assert report.folded["blocks.2.short.layers.1"] == "blocks.2.short.layers.0"
    model.eval()
    close(folded(x), model(x))
    assert instructions(folded, x) < instructions(model, x)


def test_a_transformer_with_batch_norm():
    """Its dense layers are in bfloat16: so is what is folded into them."""
    x = jax.random.normal(jax.random.key(0), (2, 6, 16))
    after = partial(jn.linen.Norm, jn.BatchNorm(), train=False)
    model = LinenTransformer(partial(jn.linen.Norm, jn.LayerNorm(), train=False), after)
    variables = trained(model.init(jax.random.key(1), x))
    apply, folded, report = jn.linen.fold(model, variables, x)
    assert report.folded == {"Norm_1": "MultiHeadDotProductAttention_0.out", "Norm_3": "Dense_1"}
    assert all("LayerNorm is not by running" in why for why in report.kept.values())
    want = model.apply(variables, x)
    np.testing.assert_allclose(apply(folded, x), want, atol=0.02 * abs(want).max())
    net = NNXTransformer(jn.nnx.LayerNorm, jn.nnx.BatchNorm, 16, rngs=nnx.Rngs(0))
    nnx.update(net, trained(nnx.state(net)))
    with jax.numpy_dtype_promotion("standard"):
        small, report = jn.nnx.fold(net, x)
        assert report.folded == {"after.0": "attention.out", "after.1": "down"}
        net.eval()
        np.testing.assert_allclose(small(x), net(x), atol=0.02 * abs(net(x)).max())
