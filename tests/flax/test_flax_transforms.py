"""Norms under Flax's own transforms: each gives what a loop by hand gives."""

from functools import partial

import chex
import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (4, 8, 3)) * jnp.arange(1.0, 5)[:, None, None] + 5
GRID = jn.BatchNorm(momentum=jnp.array([0.9, 0.5]), epsilon=jnp.array([1e-5, 1e-2]))

LINEN = {
    "Norm": lambda **names: jn.linen.Norm(jn.BatchNorm(momentum=0.5, **names), train=True),
    "BatchNorm": lambda **names: jn.linen.BatchNorm(use_running_average=False, momentum=0.5, **names),
}
NNX = {
    "Norm": lambda **names: jn.nnx.Norm(jn.BatchNorm(momentum=0.5, **names), 3),
    "BatchNorm": lambda **names: jn.nnx.BatchNorm(3, momentum=0.5, rngs=nnx.Rngs(0), **names),
}
in_linen = pytest.mark.parametrize("make", LINEN.values(), ids=LINEN)
in_nnx = pytest.mark.parametrize("make", NNX.values(), ids=NNX)


close = partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-5)


def stack(*trees):
    return jax.tree.map(lambda *v: jnp.stack(v), *trees)


class Block(nn.Module):
    """A norm and a layer, as users write it."""

    make: object

    @nn.compact
    def __call__(self, x):
        return nn.tanh(nn.Dense(3)(self.make()(x)))


class Layer(nn.Module):
    """The same as the body of a scan over layers, or over data."""

    make: object

    @nn.compact
    def __call__(self, carry, x):
        return Block(self.make, name="block")(carry if x is None else x), x


def step(module, variables, x):
    """Output, updates, and the gradient of the parameters."""

    def loss(params):
        y, updates = module.apply(variables | {"params": params}, x, mutable=["batch_stats"])
        return (y**3).sum(), (y, updates)

    grads, (y, updates) = jax.grad(loss, has_aux=True)(variables["params"])
    return y, updates, grads


@in_linen
@pytest.mark.parametrize("lift", [nn.jit, nn.remat])
def test_linen_jit_and_remat(make, lift):
    variables = Block(make).init(KEY, X[0])
    lifted = lift(Block)(make)
    assert jax.tree.map(jnp.shape, lifted.init(KEY, X[0])) == jax.tree.map(jnp.shape, variables)
    close(step(lifted, variables, X[0]), step(Block(make), variables, X[0]))


@in_linen
def test_linen_scan_over_layers(make):
    axes = {"params": 0, "batch_stats": 0}
    deep = nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=3)(make)
    variables = deep.init(KEY, X[0], None)
    (y, _), updates = deep.apply(variables, X[0], None, mutable=["batch_stats"])
    want, new = X[0], []
    for i in range(3):
        layer = jax.tree.map(lambda v, i=i: v[i], variables)
        (want, _), update = Layer(make).apply(layer, want, None, mutable=["batch_stats"])
        new.append(update)
    close((y, updates), (want, stack(*new)))


@in_linen
def test_linen_scan_over_batches(make):
    class Over(nn.Module):
        make: object

        @nn.compact
        def __call__(self, carry, x):
            return carry, Block(self.make, name="block")(x)

    scanned = nn.scan(Over, variable_broadcast="params", variable_carry="batch_stats", split_rngs={"params": False})(
        make
    )
    variables = Over(make).init(KEY, None, X[0])
    (_, ys), updates = scanned.apply(variables, None, X, mutable=["batch_stats"])
    want, new = [], variables
    for x in X:
        (_, y), update = Over(make).apply(new, None, x, mutable=["batch_stats"])
        want, new = [*want, y], variables | update
    close((ys, updates["batch_stats"]), (jnp.stack(want), new["batch_stats"]))


@in_linen
def test_linen_vmap_with_statistics_of_their_own(make):
    many = nn.vmap(Block, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True})(make)
    variables = many.init(KEY, X)
    got = many.apply(variables, X, mutable=["batch_stats"])
    each = [
        Block(make).apply(jax.tree.map(lambda v, i=i: v[i], variables), X[i], mutable=["batch_stats"]) for i in range(4)
    ]
    close(got, stack(*each))


SHARED = {"variable_axes": {"params": None, "batch_stats": None}, "split_rngs": {"params": False}}


@in_linen
def test_linen_vmap_with_shared_statistics(make):
    """google/flax issue 3319: nested vmaps over one norm, whose statistics are those of all data."""
    xs = jnp.stack([X, 2 * X])
    nested = nn.vmap(nn.vmap(Block, axis_name="inner", **SHARED), axis_name="outer", **SHARED)
    module = nested(lambda: make(axis_name=("outer", "inner")))
    variables = module.init(KEY, xs)
    close(variables, Block(make).init(KEY, X[0]))
    y, updates = module.apply(variables, xs, mutable=["batch_stats"])
    want, new = Block(make).apply(variables, xs.reshape(-1, 3), mutable=["batch_stats"])
    close((y.reshape(-1, 3), updates), (want, new))


@in_linen
def test_linen_vmap_with_shared_statistics_that_differ_is_an_error(make):
    module = nn.vmap(Block, axis_name="inner", **SHARED)(make)
    with pytest.raises(ValueError, match="out_axes is None"):
        module.apply(module.init(KEY, X), X, mutable=["batch_stats"])


@in_linen
def test_linen_share_scope(make):
    class Outer(nn.Module):
        make: object

        def setup(self):
            self.norm = self.make()
            nn.share_scope(self, self.norm)

        def __call__(self, x):
            return self.norm(x)

    close(Outer(make).init(KEY, X[0]), make().init(KEY, X[0]))


@in_linen
def test_linen_lazy_init_and_tabulate(make):
    variables = make().lazy_init(KEY, jax.ShapeDtypeStruct((8, 3), jnp.float32))
    close(variables, make().init(KEY, X[0]))
    assert "batch_stats" in make().tabulate(KEY, X[0], console_kwargs={"width": 200})


@in_linen
def test_linen_partitioning_metadata(make):
    init = nn.with_partitioning(nn.initializers.ones, ("model",))
    module = make().clone(scale_init=init)
    boxed = module.init(KEY, X[0])
    assert boxed["params"]["scale"].names == ("model",)
    close(module.apply(boxed, X[0], mutable=["batch_stats"])[0], jn.batch_norm(X[0], None, train=True)[0])


def test_linen_vmap_over_a_grid_of_specs():
    class Sweep(nn.Module):
        @nn.compact
        def __call__(self, x, spec):
            return jn.linen.Norm(spec, train=True)(x)

    axes = {"params": 0, "batch_stats": 0}
    module = nn.vmap(Sweep, in_axes=(None, 0), variable_axes=axes, split_rngs={"params": True})()
    y, updates = module.apply(module.init(KEY, X[0], GRID), X[0], GRID, mutable=["batch_stats"])
    mean = np.asarray(X[0], float).mean(0)
    close(updates["batch_stats"]["Norm_0"]["mean"], np.stack([0.1 * mean, 0.5 * mean]))
    assert np.abs(y[0] - y[1]).max() > 1e-5


@in_nnx
@pytest.mark.parametrize("lift", [nnx.jit, nnx.remat])
def test_nnx_jit_and_remat(make, lift):
    lifted, plain = make(), make()
    run = lift(lambda m, x: m(x))
    for x in X:
        close(run(lifted, x), plain(x))
    close(nnx.to_pure_dict(nnx.state(lifted)), nnx.to_pure_dict(nnx.state(plain)))
    loss = lambda call: lambda m: (call(m, X[0]) ** 3).sum()
    grads = [nnx.to_pure_dict(nnx.grad(loss(call))(make())) for call in (run, lambda m, x: m(x))]
    close(*grads)


@in_nnx
def test_nnx_vmap_and_scan_over_layers(make):
    layers = nnx.vmap(lambda _: make())(jnp.arange(4))
    assert layers.mean.shape == (4, 3)
    y = nnx.vmap(lambda m, x: m(x))(layers, X)
    each = [make() for _ in X]
    close(y, jnp.stack([m(x) for m, x in zip(each, X, strict=True)]))
    close(nnx.to_pure_dict(nnx.state(layers)), stack(*(nnx.to_pure_dict(nnx.state(m)) for m in each)))
    y = nnx.scan(lambda x, m: m(3 * x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(X[0], layers)
    want = X[0]
    for m in each:
        want = m(3 * want)
    close(y, want)


@in_nnx
def test_nnx_scan_over_batches(make):
    scanned, looped = make(), make()
    axes = {"in_axes": (nnx.Carry, 0), "out_axes": (nnx.Carry, 0)}
    _, ys = nnx.scan(lambda m, x: (m, m(x)), **axes)(scanned, X)
    close(ys, jnp.stack([looped(x) for x in X]))
    close(nnx.to_pure_dict(nnx.state(scanned)), nnx.to_pure_dict(nnx.state(looped)))


@in_nnx
def test_nnx_vmap_with_shared_statistics(make):
    """google/flax issue 4760: one norm, mapped over, whose statistics are those of all data."""
    shared, whole = make(axis_name="batch"), make()
    call = nnx.vmap(lambda m, x: m(x), in_axes=(None, 0), axis_name="batch")
    for x in (X, 2 * X):
        close(call(shared, x).reshape(-1, 3), whole(x.reshape(-1, 3)))
    close(nnx.to_pure_dict(nnx.state(shared)), nnx.to_pure_dict(nnx.state(whole)))
    shared.eval()
    close(nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(shared, X), shared(X))


@in_nnx
def test_nnx_vmap_with_shared_statistics_that_differ_is_an_error(make):
    norm = make()
    with pytest.raises(ValueError, match="got axis spec None but output was batched"):
        nnx.vmap(lambda m, x: m(x), in_axes=(None, 0))(norm, X)
    with pytest.raises(flax.errors.TraceContextError, match="in_axes=\\(None, 0\\), axis_name='batch'"):
        nnx.vmap(lambda x: norm(x))(X)
    np.testing.assert_array_equal(norm.mean[...], 0)


def test_nnx_vmap_over_a_grid_of_specs():
    norms = nnx.vmap(lambda spec: jn.nnx.Norm(spec, 3))(GRID)
    y = nnx.vmap(lambda m, x: m(x), in_axes=(0, None))(norms, X[0])
    mean = np.asarray(X[0], float).mean(0)
    close(norms.mean[...], np.stack([0.1 * mean, 0.5 * mean]))
    assert np.abs(y[0] - y[1]).max() > 1e-5
