"""Any spec as a Flax nnx module."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CountingScale, norms
from flax import nnx

import jaxnorm as jn

X = jax.random.normal(jax.random.key(0), (8, 3)) + 2


@norms
def test_the_module_is_the_spec(case):
    module = jn.nnx.Norm(case.spec, case.spec.features(case.shape))
    params, state = case.spec.init(case.spec.features(case.shape))
    for name, value in params._asdict().items():
        found = getattr(module, name)
        assert found is None if value is None else (type(found), found.shape) == (nnx.Param, value.shape)
    for x in (case.data(seed=1), case.data(seed=2)):
        y = module(x)
        want, state = case.spec.apply(params, state, x, train=True)
        np.testing.assert_array_equal(y, want)
    stats = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
    jax.tree.map(
        np.testing.assert_array_equal,
        stats,
        {k: v for k, v in state._asdict().items() if v is not None} if state else {},
    )
    module.eval()
    np.testing.assert_array_equal(module(x), case.spec.apply(params, state, x, train=False)[0])
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)), stats)


def test_evaluation_by_attribute_by_argument_and_by_view():
    norm = jn.nnx.Norm(jn.BatchNorm(), 3)
    want = X / jnp.sqrt(1 + 1e-5)
    np.testing.assert_allclose(norm(X, use_running_average=True), want, rtol=1e-6)
    np.testing.assert_allclose(nnx.view(norm, use_running_average=True)(X), want, rtol=1e-6)
    np.testing.assert_allclose(jn.nnx.Norm(jn.BatchNorm(), 3, use_running_average=True)(X), want, rtol=1e-6)
    norm.eval()
    np.testing.assert_allclose(norm(X), want, rtol=1e-6)
    np.testing.assert_array_equal(norm.mean[...], 0)
    assert np.abs(norm(X, use_running_average=False).mean(0)).max() < 1e-5
    once = norm.mean[...]
    assert np.abs(once).min() > 0
    norm.train()
    norm(X)
    assert (np.abs(norm.mean[...]) > np.abs(once)).all()
    assert "use_running_average" in nnx.view_info(norm)
    with pytest.raises(ValueError, match="given nowhere"):
        jn.nnx.Norm(jn.BatchNorm(), 3, use_running_average=None)(X)


def test_variables_of_flax_batch_norm_load():
    theirs = nnx.BatchNorm(3, momentum=0.9, rngs=nnx.Rngs(0))
    with jax.numpy_rank_promotion("allow"):
        theirs(X)
        ours = jn.nnx.Norm(jn.BatchNorm(momentum=0.9), 3)
        nnx.update(ours, nnx.state(theirs))
        np.testing.assert_allclose(ours(X), theirs(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.var[...], theirs.var[...], rtol=1e-5)


def test_initialisers_and_dtype():
    inits = {"scale_init": nnx.initializers.uniform(), "bias_init": nnx.initializers.constant(3)}
    norm = jn.nnx.Norm(jn.LayerNorm(), 3, nnx.Rngs(0), param_dtype=jnp.bfloat16, **inits)
    assert norm.scale.dtype == norm.bias.dtype == jnp.bfloat16
    assert len(np.unique(np.asarray(norm.scale[...], np.float32))) > 1
    np.testing.assert_array_equal(norm.bias[...].astype(jnp.float32), 3)
    with pytest.raises(ValueError, match="rngs"):
        jn.nnx.Norm(jn.LayerNorm(), 3, scale_init=nnx.initializers.uniform())


def test_masks_reach_the_norm():
    where = jnp.arange(8)[:, None] < 5
    masked, cut = jn.nnx.Norm(jn.BatchNorm(), 3), jn.nnx.Norm(jn.BatchNorm(), 3)
    np.testing.assert_allclose(masked(jnp.where(where, X, jnp.nan), where=where)[:5], cut(X[:5]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(masked.mean[...], cut.mean[...], rtol=1e-6)


@pytest.mark.once
def test_norms_are_swapped_without_touching_the_model():
    class Net(nnx.Module):
        def __init__(self, spec, rngs):
            self.first, self.last = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)
            self.norm = jn.nnx.Norm(spec, 4)

        def __call__(self, x):
            return self.last(nnx.relu(self.norm(self.first(x))))

    for spec in (jn.Identity(), jn.BatchNorm(), jn.LayerNorm(), jn.GroupNorm(groups=2), jn.RMSNorm()):
        net = Net(spec, nnx.Rngs(0))
        grads = nnx.jit(nnx.grad(lambda net: (net(X) ** 2).mean()))(net)
        chex.assert_tree_all_finite(grads)
        net.eval()
        np.testing.assert_allclose(net(X)[:1], net(X[:1]), rtol=1e-5)


def test_partitioning_metadata():
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    init = nnx.with_partitioning(nnx.initializers.ones, ("model",))
    with jax.set_mesh(mesh):
        norm = jn.nnx.Norm(jn.BatchNorm(), 4, nnx.Rngs(0), scale_init=init)
        assert norm.scale[...].sharding.spec == jax.sharding.PartitionSpec("model")
        y = nnx.jit(lambda norm, x: norm(x))(norm, jnp.arange(8.0).reshape(2, 4))
    np.testing.assert_allclose(y, [[-1] * 4, [1] * 4], rtol=1e-4)


def test_arrays_of_a_spec_are_state_and_numbers_are_not():
    norm = jn.nnx.Norm(jn.BatchNorm(momentum=jnp.float32(0.9)), 3)
    assert nnx.to_pure_dict(nnx.state(norm))["spec"].keys() == {"momentum"}
    run = nnx.jit(lambda norm, x: norm(x))
    run(norm, X)
    norm.spec = nnx.data(jn.BatchNorm(momentum=jnp.float32(0.0)))
    run(norm, X)
    np.testing.assert_allclose(norm.mean[...], X.mean(0), rtol=1e-5)


def test_the_functional_interface_mapped_over_data():
    """A graph and a state in, many states out."""
    graph, state = nnx.split(jn.nnx.Norm(jn.BatchNorm(momentum=0.0), 3))

    def run(x):
        norm = nnx.merge(graph, state, copy=True)
        return norm(x), nnx.state(norm)

    xs = jnp.stack([X, 2 * X])
    _, states = jax.jit(jax.vmap(run))(xs)
    np.testing.assert_allclose(states["mean"][...], xs.mean(1), rtol=1e-5)


def test_parameters_and_state_may_be_dicts():
    norm = jn.nnx.Norm(CountingScale(), 3)
    np.testing.assert_array_equal(norm(X), 2 * X)
    norm.eval()
    norm(X)
    assert nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat)) == {"updates": 1}
    assert jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(norm, nnx.Param))) == {"scale": (3,)}
    jn.nnx.accumulate(norm)
    assert not hasattr(norm, "seen")
