"""Norms of nnx models that stay, and why; the copy stands for the model in all that is done to one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import says

import jaxnorm as jn

X = jax.random.normal(jax.random.key(0), (2, 6, 6, 4)) * 2 + 1


def bn(**options):
    return jn.nnx.BatchNorm(4, rngs=nnx.Rngs(0), **options)


def conv(**options):
    return nnx.Conv(4, 4, (3, 3), rngs=nnx.Rngs(1), **options)


class Tied(nnx.Module):
    """Two convolutions that have one kernel."""

    def __init__(self):
        self.first, self.second, self.norm = conv(), conv(), bn()
        self.second.kernel = self.first.kernel

    def __call__(self, x):
        return self.norm(self.second(nnx.relu(self.first(x))))


class Twice(nnx.Module):
    def __init__(self):
        self.conv, self.norm = conv(), bn()

    def __call__(self, x):
        return self.norm(self.conv(self.norm(self.conv(x))))


class Scanned(nnx.Module):
    def __init__(self):
        @nnx.split_rngs(splits=2)
        @nnx.vmap
        def make(rngs):
            return nnx.Sequential(nnx.Conv(4, 4, (3, 3), rngs=rngs), jn.nnx.BatchNorm(4, rngs=rngs))

        self.blocks = make(nnx.Rngs(0))

    def __call__(self, x):
        return nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)


class Scaled(nnx.Conv):
    def __call__(self, x):
        return 2 * super().__call__(x)


class WithRelu(jn.nnx.BatchNorm):
    def __call__(self, x, **kwargs):
        return nnx.relu(super().__call__(x, **kwargs))


class Read(nnx.Module):
    """A kernel that is held elsewhere, and read there."""

    def __init__(self):
        self.dense, self.norm = nnx.Linear(4, 4, rngs=nnx.Rngs(0)), bn()
        self.held = nnx.data([self.dense.kernel])

    def __call__(self, x):
        return self.norm(self.dense(x)) @ self.held[0][...].T


class Streaming(nnx.Module):
    """What a layer gave before is kept."""

    def __init__(self):
        self.conv, self.norm, self.before = conv(), bn(), nnx.Variable(jnp.zeros(X.shape))

    def __call__(self, x):
        y = self.conv(x)
        z = self.norm(y) + self.before[...]
        self.before[...] = y
        return z


KEPT = {
    "a subclass of a norm": (lambda: nnx.Sequential(conv(), WithRelu(4, rngs=nnx.Rngs(0))), "WithRelu is a class"),
    "a kernel read elsewhere": (Read, "Variables of dense are computed, shared"),
    "kept for later": (Streaming, "What conv gives is used elsewhere"),
    "after relu": (lambda: nnx.Sequential(conv(), nnx.relu, bn()), "no layer, but relu"),
    "before zeros": (lambda: nnx.Sequential(bn(), conv()), "pads with zeros"),
    "shared kernel": (Tied, "Variables of second are computed, shared"),
    "called twice": (Twice, "called 2 times"),
    "scanned": (Scanned, "computed, shared, or several"),
    "a subclass": (lambda: nnx.Sequential(Scaled(4, 4, (3, 3), rngs=nnx.Rngs(1)), bn()), "is no layer, but mul"),
    "layer norm": (lambda: nnx.Sequential(conv(), nnx.LayerNorm(4, rngs=nnx.Rngs(0))), "LayerNorm is not by running"),
}


def trained(model):
    for _ in range(3):
        model(X)
    model.eval()
    return model


@pytest.mark.parametrize("name", KEPT)
def test_what_stays(name):
    make, why = KEPT[name]
    model = trained(make())
    folded, report = jn.nnx.fold(model, X)
    assert not report.folded
    says(lambda: raising(str(report)), why)
    for _ in range(2):
        np.testing.assert_array_equal(folded(X), model(X))


def raising(text):
    raise ValueError(text)


class Block(nnx.Module):
    def __init__(self):
        self.conv, self.norm = conv(use_bias=False), bn()

    def __call__(self, x, *, train: bool = False):
        return nnx.relu(self.norm(self.conv(x), use_running_average=not train))


@pytest.mark.parametrize("lift", [nnx.jit, nnx.remat])
def test_parts_that_are_compiled_or_recomputed(lift):
    class Net(nnx.Module):
        def __init__(self):
            self.blocks = nnx.List([Block(), Block()])

        def __call__(self, x):
            for block in self.blocks:
                x = lift(lambda block, x: block(x))(block, x)
            return x

    model = Net()
    for block in model.blocks:
        block(X, train=True)
    folded, report = jn.nnx.fold(model, X)
    assert report.folded == {"blocks.0.norm": "blocks.0.conv", "blocks.1.norm": "blocks.1.conv"}
    np.testing.assert_allclose(folded(X), model(X), rtol=1e-5, atol=1e-5)
    assert type(model.blocks[0].conv) is nnx.Conv
    assert type(folded.blocks[0].conv) is nnx.Conv


def test_the_copy_is_a_model():
    """It is split, compiled, differentiated and told to train as any other; norms that are no more do not train."""
    model = Block()
    model(X, train=True)
    folded, _ = jn.nnx.fold(model, X)
    want = model(X)
    folded.train()
    for y in (nnx.jit(lambda m, x: m(x))(folded, X), nnx.merge(*nnx.split(folded))(X), folded(X, train=True)):
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    grads = nnx.grad(lambda m: m(X).sum())(folded)
    assert sorted(grads["conv"]) == ["bias", "kernel"]
    assert "norm" not in nnx.state(folded)
    assert folded(X.astype(jnp.float32)).dtype == want.dtype
    for batch in ((X,), {"x": X}, jax.ShapeDtypeStruct(X.shape, X.dtype)):
        assert jn.nnx.fold(model, batch)[1].folded == {"norm": "conv"}
    says(lambda: jn.nnx.fold(model, X, train=True), "nnx.fold: a norm is told to train")
    says(lambda: jn.nnx.fold(model, (X, 1)), "nnx.fold: a batch gives")


class Held(nnx.Module):
    """A norm that is held at several places, in containers of every kind."""

    def __init__(self):
        self.layers, self.norm = nnx.data((conv(), bn())), bn()
        self.named = nnx.data({"conv": conv(), "norm": bn()})
        self.listed = nnx.List([conv(), self.norm])
        self.pair = nnx.Sequential(self.listed[0], self.norm)

    def __call__(self, x):
        x = nnx.relu(self.layers[1](self.layers[0](x)))
        x = nnx.relu(self.named["norm"](self.named["conv"](x)))
        return self.pair(x)


def test_wherever_a_norm_is_held():
    model = Held()
    model(X)
    model.eval()
    folded, report = jn.nnx.fold(model, X)
    assert len(report.folded) == 3
    assert type(folded.norm) is type(folded.listed[1]) is not jn.nnx.BatchNorm
    assert folded.norm is folded.pair.layers[1]
    np.testing.assert_allclose(folded(X), model(X), rtol=1e-5, atol=1e-5)
    again, report = jn.nnx.fold(folded, X)
    assert report == ({}, {})
    np.testing.assert_array_equal(again(X), folded(X))
