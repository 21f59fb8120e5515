"""Norms of linen models whose code one can't change: frozen, within a context."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from models import says

import jaxnorm as jn
from benchmarks.networks import LinenResNet18

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (4, 8, 8, 3)) * 2 + 1
NORMS = {
    "flax": partial(nn.BatchNorm, use_running_average=False),
    "drop-in": partial(jn.linen.BatchNorm, use_running_average=False),
    "spec": partial(jn.linen.Norm, jn.BatchNorm(), train=True),
}
each = pytest.mark.parametrize("name", NORMS)


def resnet(norm, **kwargs):
    """A small ResNet-18, and its variables with running statistics that are not those of the data."""
    model = LinenResNet18(norm, width=4, **kwargs)
    variables = model.init(KEY, X)
    stats = jax.tree.map(lambda v: v * 0.5 - 0.125, variables["batch_stats"])
    return model, {**variables, "batch_stats": stats}


def evaluating(name):
    """A network like those that train, told to evaluate."""
    return {
        "flax": partial(nn.BatchNorm, use_running_average=True),
        "drop-in": partial(jn.linen.BatchNorm, use_running_average=True),
        "spec": partial(jn.linen.Norm, jn.BatchNorm(), train=False),
    }[name]


@each
def test_a_training_network_evaluates_without_a_mutable_collection(name):
    model, variables = resnet(NORMS[name])
    with jn.linen.frozen():
        y = jax.jit(lambda variables, x: model.apply(variables, x))(variables, X)
        again, updates = model.apply(variables, X, mutable="batch_stats")
    want = LinenResNet18(evaluating(name), width=4).apply(variables, X)
    assert (want != 0).all()
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(again, want, rtol=1e-4, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
    after, updates = model.apply(variables, X, mutable="batch_stats")
    assert abs(after - want).max() > 0.01
    assert (updates["batch_stats"]["BatchNorm_0" if name != "spec" else "Norm_0"]["mean"] != -0.125).all()


@pytest.mark.parametrize(
    ("name", "trained"), [("flax", False), ("flax", True), ("drop-in", False), ("spec", False), ("spec", True)]
)
def test_a_step_of_fine_tuning_changes_no_frozen_norm(name, trained):
    model, variables = resnet(NORMS[name])

    def loss(params):
        with jn.linen.frozen(trained=trained):
            y, updates = model.apply({**variables, "params": params}, X, mutable="batch_stats")
        return (y**2).sum(), updates

    (_, updates), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
    optimizer = optax.sgd(0.1)
    steps, _ = optimizer.update(grads, optimizer.init(variables["params"]))
    new = optax.apply_updates(variables["params"], steps)
    for path, value in jax.tree_util.tree_leaves_with_path(new):
        old = variables["params"]
        for key in path:
            old = old[key.key]
        norm = path[-1].key in ("scale", "bias") and "Norm" in path[-2].key
        assert (np.array_equal(value, old)) == (norm and not trained), path


@each
def test_inputs_get_the_gradient_of_evaluation(name):
    norm = NORMS[name]()
    variables = norm.init(KEY, X)
    with jn.linen.frozen():
        got = jax.grad(lambda x: (norm.apply(variables, x) ** 2).sum())(X)
    np.testing.assert_allclose(got, jax.grad(lambda x: (evaluating(name)().apply(variables, x) ** 2).sum())(X))


class Several(nn.Module):
    """Norms of both kinds, by setup, one in a scan; the last argument by position is Flax's flag."""

    def setup(self):
        self.first, self.last = nn.BatchNorm(), nn.LayerNorm()

    @nn.compact
    def __call__(self, x, flag=None):
        for _ in range(2):
            x = self.first(x, flag)
        scanned = nn.scan(Step, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=2)
        x, _ = scanned(name="scanned")(x, None)
        return self.last(x)


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.remat(nn.BatchNorm)(use_running_average=False, name="norm")(x), None


def test_flags_setup_scan_and_remat():
    model = Several()
    variables = model.init(KEY, X, False)
    with jn.linen.frozen():
        y = model.apply(variables, X, False)
        np.testing.assert_array_equal(model.apply(variables, X, True), y)
    assert not jnp.array_equal(y, model.apply(variables, X, False, mutable="batch_stats")[0])
    loss = lambda params, x: (model.apply({**variables, "params": params}, x, False) ** 3).sum()
    with jn.linen.frozen(lambda path, module: True):
        grads = jax.grad(loss)(variables["params"], X)
    assert all((v == 0).all() for v in jax.tree.leaves(grads))
    with jn.linen.frozen("scanned"):
        _, updates = model.apply(variables, X, False, mutable="batch_stats")
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"]["scanned"], variables["batch_stats"]["scanned"])
    assert (updates["batch_stats"]["first"]["mean"] != 0).all()


class Blockwise(nn.Module):
    """A block that has a spec to make a norm of, and other layers."""

    spec: jn.Spec

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(0.5, deterministic=False)(nn.Dense(3)(x))
        return jn.linen.Norm(self.spec)(x, train=train)


def test_a_block_with_a_spec_is_no_norm():
    model = Blockwise(jn.BatchNorm())
    variables = model.init({"params": KEY, "dropout": KEY}, X, False)

    def loss(params):
        with jn.linen.frozen():
            return (model.apply({**variables, "params": params}, X, True, rngs={"dropout": KEY}) ** 3).sum()

    grads = jax.grad(loss)(variables["params"])
    assert (grads["Dense_0"]["kernel"] != 0).all()
    assert all((v == 0).all() for v in jax.tree.leaves(grads["Norm_0"]))


class Noisy(nn.BatchNorm):
    """A norm of a user, with a variable, a key and something to sow."""

    @nn.compact
    def __call__(self, x, use_running_average=None):
        shift = self.variable("consts", "shift", lambda: jnp.ones(3)).value
        x = super().__call__(x, use_running_average)
        self.sow("intermediates", "seen", x)
        return x + shift.reshape(1, 1, 1, 3) + jax.random.normal(self.make_rng("noise"), x.shape)


def test_a_norm_may_have_keys_variables_and_more():
    model = Noisy(use_running_average=False)
    variables = model.init({"params": KEY, "noise": KEY}, X)
    with jn.linen.frozen():
        y, updates = model.apply(variables, X, rngs={"noise": KEY}, mutable=["intermediates", "batch_stats"])
    evaluating = Noisy(use_running_average=True)
    np.testing.assert_allclose(y, evaluating.apply(variables, X, rngs={"noise": KEY}), rtol=1e-5)
    np.testing.assert_allclose(updates["intermediates"]["seen"][0], X, rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("trained", [False, True])
def test_what_its_author_froze_stays_as_it_was_said(trained):
    model = jn.linen.Norm(jn.freeze(jn.BatchNorm(), trained=trained), train=True)
    variables = model.init(KEY, X)

    def loss(params):
        with jn.linen.frozen(trained=not trained):
            return (model.apply({**variables, "params": params}, X) ** 3).sum()

    assert (jax.grad(loss)(variables["params"])["scale"] != 0).all() == trained


@pytest.mark.long
def test_recalibrate_leaves_frozen_norms_alone():
    model, variables = resnet(NORMS["spec"])
    before = variables["batch_stats"]
    with jn.linen.frozen(lambda path, module: path[-1] == "Norm_0"):
        new = jn.linen.recalibrate(model, variables, [X, X + 1])["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, new["Norm_0"], before["Norm_0"])
    assert (new["Norm_1"]["mean"] != before["Norm_1"]["mean"]).all()
    assert new["Norm_0"].keys() == {"mean", "var"}
    drop_in, variables = resnet(NORMS["drop-in"])
    with jn.linen.frozen("BatchNorm_1"):
        new = jn.linen.recalibrate(drop_in, variables, [X])["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, new["BatchNorm_1"], variables["batch_stats"]["BatchNorm_1"])


def test_to_initialize_is_what_it_was():
    model = LinenResNet18(NORMS["spec"], width=4)
    with pytest.raises(ValueError, match="frozen: the model has no"), jn.linen.frozen():
        variables = model.init(KEY, X)
    jax.tree.map(np.testing.assert_array_equal, variables, model.init(KEY, X))


def test_where_nothing_is_frozen_it_says_so():
    model, variables = resnet(NORMS["flax"])

    def wrongly(select=None):
        with jn.linen.frozen(select):
            model.apply(variables, X, mutable="batch_stats")

    says(lambda: wrongly(nn.LayerNorm), "frozen: the model has no norms", "BatchNorm_0", "LinenBlock_0.BatchNorm_1")
    says(lambda: wrongly("LinenBlock_9"), "LinenBlock_9")
    step = jax.jit(lambda x: model.apply(variables, x, mutable="batch_stats")[0])
    step(X)

    def too_late():
        with jn.linen.frozen():
            step(X)

    says(too_late, "compiled before", "with jn.linen.frozen")


def test_what_is_raised_within_is_raised():
    with pytest.raises(RuntimeError, match="mine"), jn.linen.frozen():
        raise RuntimeError("mine")
