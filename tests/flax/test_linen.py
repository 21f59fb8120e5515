"""Any spec as a Flax linen module."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CountingScale, norms

import jaxnorm as jn

X = jax.random.normal(jax.random.key(0), (8, 3)) + 2
KEY = jax.random.key(0)


@norms
def test_the_module_is_the_spec(case):
    module = jn.linen.Norm(case.spec)
    x = case.data()
    variables = module.init(KEY, x, train=True)
    params, state = case.spec.init(case.spec.features(case.shape))
    assert jax.tree.map(jnp.shape, dict(variables["params"])) == {
        k: v.shape for k, v in params._asdict().items() if v is not None
    }
    y, updates = module.apply(variables, x, train=True, mutable="batch_stats")
    want, new = case.spec.apply(params, state, x, train=True)
    np.testing.assert_array_equal(y, want)
    jax.tree.map(
        np.testing.assert_array_equal,
        updates.get("batch_stats", {}),
        {k: v for k, v in new._asdict().items() if v is not None} if new else {},
    )
    y = module.apply(variables | updates, x, train=False)
    np.testing.assert_array_equal(y, case.spec.apply(params, new, x, train=False)[0])


def test_train_is_an_attribute_or_an_argument():
    variables = jn.linen.Norm(jn.BatchNorm()).init(KEY, X, train=False)
    evaluate = jn.linen.Norm(jn.BatchNorm(), train=False)
    np.testing.assert_array_equal(
        evaluate.apply(variables, X), jn.linen.Norm(jn.BatchNorm()).apply(variables, X, train=False)
    )
    with pytest.raises(ValueError, match="train"):
        jn.linen.Norm(jn.BatchNorm()).apply(variables, X)


def test_initialisation_is_the_same_in_every_mode_and_never_updates():
    modes = [jn.linen.Norm(jn.BatchNorm(axis_name="devices")).init(KEY, X, train=t) for t in (True, False)]
    chex.assert_trees_all_equal(*modes)
    stats = modes[0]["batch_stats"]
    assert (stats["mean"].sum(), stats["var"].sum()) == (0, 3)


def test_variables_of_flax_batch_norm_load():
    theirs = nn.BatchNorm(use_running_average=False, momentum=0.9)
    variables = theirs.init(KEY, X)
    y, updates = theirs.apply(variables, X, mutable="batch_stats")
    ours = jn.linen.Norm(jn.BatchNorm(momentum=0.9))
    got, new = ours.apply(variables, X, train=True, mutable="batch_stats")
    np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["var"], updates["batch_stats"]["var"], rtol=1e-5)
    assert jax.tree.structure(new) == jax.tree.structure({"batch_stats": dict(updates["batch_stats"])})
    assert ours.apply(variables, X, train=False).shape == X.shape


def test_initialisers_and_dtype():
    module = jn.linen.Norm(jn.LayerNorm(), train=True, scale_init=nn.initializers.constant(3), param_dtype=jnp.bfloat16)
    params = module.init(KEY, X)["params"]
    np.testing.assert_array_equal(params["scale"].astype(jnp.float32), 3)
    assert params["bias"].dtype == jnp.bfloat16


def test_norms_are_swapped_without_touching_the_model():
    class Net(nn.Module):
        norm: jn.Spec

        @nn.compact
        def __call__(self, x, train):
            x = jn.linen.Norm(self.norm)(nn.Dense(4)(x), train=train)
            return nn.Dense(1)(nn.relu(x))

    for spec in (jn.Identity(), jn.BatchNorm(), jn.LayerNorm(), jn.GroupNorm(groups=2), jn.RMSNorm()):
        net = Net(spec)
        variables = net.init(KEY, X, train=False)

        @jax.jit
        def loss(params, variables, net=net):
            y, updates = net.apply(variables | {"params": params}, X, train=True, mutable="batch_stats")
            return (y**2).mean(), updates

        grads, _ = jax.grad(loss, has_aux=True)(variables["params"], variables)
        chex.assert_tree_all_finite(grads)


def test_masks_reach_the_norm():
    where = jnp.arange(8)[:, None] < 5
    module = jn.linen.Norm(jn.BatchNorm(), train=True)
    variables = module.init(KEY, X)
    y, _ = module.apply(variables, jnp.where(where, X, jnp.nan), where=where, mutable="batch_stats")
    want, _ = module.apply(variables, X[:5], mutable="batch_stats")
    np.testing.assert_allclose(y[:5], want, rtol=1e-5, atol=1e-6)


def test_a_grid_of_specs_through_a_module():
    grid = jn.BatchNorm(momentum=jnp.array([0.9, 0.5]), epsilon=jnp.array([1e-5, 1e-2]))
    variables = jn.linen.Norm(jn.BatchNorm(), train=True).init(KEY, X)
    run = lambda spec: jn.linen.Norm(spec, train=True).apply(variables, X, mutable="batch_stats")
    _, updates = jax.vmap(run)(grid)
    mean = np.asarray(X, float).mean(0)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], [0.1 * mean, 0.5 * mean], rtol=1e-5)


def test_parameters_and_state_may_be_dicts():
    norm = jn.linen.Norm(CountingScale())
    x = jnp.ones((4, 3))
    variables = norm.init(jax.random.key(0), x, train=False)
    y, updates = norm.apply(variables, x, train=True, mutable="batch_stats")
    np.testing.assert_array_equal(y, 2 * x)
    assert updates == {"batch_stats": {"updates": 1}}
    np.testing.assert_array_equal(norm.apply(variables | updates, x, train=False), y)


def test_a_drop_in_goes_on_with_the_weights_that_variables_have():
    """The state decides: averages that know for how much data they stand, from a `Norm`, stay such ones."""
    x = jax.random.normal(jax.random.key(0), (8, 3)) + 2
    norm = jn.linen.Norm(jn.BatchNorm(momentum=0.9, debias=True), train=True)
    drop_in = jn.linen.BatchNorm(use_running_average=False, momentum=0.9)
    variables = norm.init(jax.random.key(1), x)
    for batch in (x, 2 * x):
        (_, want), (_, new) = (module.apply(variables, batch, mutable="batch_stats") for module in (norm, drop_in))
        chex.assert_trees_all_close(new["batch_stats"], want["batch_stats"], rtol=1e-6)
        variables = variables | new
    recalibrated = jn.linen.recalibrate(drop_in, variables, [x])["batch_stats"]
    np.testing.assert_allclose(recalibrated["mean"], x.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(recalibrated["weight_sum"], np.ones(3))
