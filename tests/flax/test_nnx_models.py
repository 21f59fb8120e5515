"""Norms of nnx models are frozen, and thawed again."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from models import says

import jaxnorm as jn
from benchmarks.networks import NNXResNet18

X = jax.random.normal(jax.random.key(0), (4, 8, 8, 3)) * 2 + 1
NORMS = {"drop-in": jn.nnx.BatchNorm, "spec": lambda features, rngs: jn.nnx.Norm(jn.BatchNorm(), features, rngs)}
each = pytest.mark.parametrize("name", NORMS)
DROP_INS = {
    "BatchNorm": jn.nnx.BatchNorm, "LayerNorm": jn.nnx.LayerNorm, "RMSNorm": jn.nnx.RMSNorm,
    "InstanceNorm": jn.nnx.InstanceNorm, "GroupNorm": partial(jn.nnx.GroupNorm, num_groups=3),
}  # fmt: skip


def resnet(name):
    """A small ResNet-18, with running statistics that are not those of the data."""
    model = NNXResNet18(NORMS[name], width=4, rngs=nnx.Rngs(0))
    for stat in jax.tree.leaves(nnx.state(model, nnx.BatchStat), is_leaf=lambda v: isinstance(v, nnx.Variable)):
        stat.set_value(stat.get_value() * 0.5 - 0.125)
    return model


def stats(model):
    return jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))


@each
def test_training_is_evaluation_until_it_is_thawed(name):
    model = resnet(name)
    before = stats(model)
    model.eval()
    want = model(X)
    assert (want != 0).all()
    jn.nnx.freeze(model)
    for run in (model, nnx.jit(lambda x: model(x)), lambda x: nnx.jit(lambda m, x: m(x))(model, x)):
        model.train()
        np.testing.assert_allclose(run(X), want, rtol=1e-4, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, stats(model), before)
    other = nnx.merge(*nnx.split(model))
    np.testing.assert_allclose(other(X), want, rtol=1e-4, atol=1e-4)
    jn.nnx.unfreeze(model)
    model.eval()
    np.testing.assert_allclose(model(X), want, rtol=1e-4, atol=1e-4)
    model.train()
    assert abs(model(X) - want).max() > 0.01
    assert not np.array_equal(stats(model)["norm"]["mean"], before["norm"]["mean"])


@each
@pytest.mark.parametrize("trained", [False, True])
def test_a_step_of_fine_tuning_changes_no_frozen_norm(name, trained):
    model = resnet(name)
    jn.nnx.freeze(model, trained=trained)
    model.train()
    before = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model)))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        grads = nnx.grad(lambda model: (model(x) ** 2).sum())(model)
        optimizer.update(model, grads)

    step(model, optimizer, X)
    after = nnx.to_pure_dict(nnx.state(model))
    frozen = {path for path, m in nnx.iter_modules(model) if hasattr(m, "scale")}
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        names = tuple(key.key for key in path)
        fixed = names[-1] in ("mean", "var") or (names[:-1] in frozen and not trained)
        moves = names[:-1] in frozen or names[-1] == "kernel"
        assert np.array_equal(old, new) if fixed else not moves or not np.array_equal(old, new), names


@pytest.mark.parametrize("name", DROP_INS)
def test_scale_and_bias_of_any_norm(name):
    norm = DROP_INS[name](6, rngs=nnx.Rngs(0))
    grads = lambda: jax.tree.leaves(
        nnx.grad(lambda norm: (norm(jnp.cos(jnp.arange(48.0)).reshape(2, 4, 6)) ** 3).sum())(norm)
    )
    jn.nnx.freeze(norm, lambda path, module: True)
    assert all((v == 0).all() for v in grads())
    jn.nnx.freeze(norm, lambda path, module: True, trained=True)
    assert all((v != 0).any() for v in grads())
    jn.nnx.unfreeze(norm, lambda path, module: True)
    assert norm.frozen is None


@each
def test_a_part_of_a_model(name):
    model = resnet(name)
    jn.nnx.freeze(model, "blocks.1")
    model.train()
    before = stats(model)
    model(X)
    after = stats(model)
    jax.tree.map(np.testing.assert_array_equal, after["blocks"][1], before["blocks"][1])
    assert not np.array_equal(after["blocks"][0]["norm1"]["mean"], before["blocks"][0]["norm1"]["mean"])


@pytest.mark.long
@each
def test_recalibrate_and_accumulate_leave_it_alone(name):
    model = resnet(name)
    jn.nnx.freeze(model, "norm")
    before = stats(model)
    jn.nnx.recalibrate(model, [X, X + 1])
    jn.nnx.accumulate(model)
    model(X)
    jn.nnx.commit(model)
    after = stats(model)
    jax.tree.map(np.testing.assert_array_equal, after["norm"], before["norm"])
    assert not np.array_equal(after["input"]["mean"], before["input"]["mean"])
    assert jax.tree.structure(after) == jax.tree.structure(before)


@pytest.mark.parametrize(
    "made", [*NORMS.values(), lambda n, rngs: jn.nnx.Norm(jn.BatchNorm(momentum=jnp.array(0.9)), n)]
)
def test_there_and_back_is_nothing_done(made):
    """Also with an array in the spec, which is a variable of its own."""
    norm = made(3, rngs=nnx.Rngs(0))
    graph, state = nnx.split(norm)
    jn.nnx.freeze(norm)
    assert jax.tree.structure(nnx.state(norm)) == jax.tree.structure(state)
    jn.nnx.unfreeze(norm)
    assert nnx.graphdef(norm) == graph


@pytest.mark.parametrize("trained", [False, True])
def test_what_its_author_froze_stays_as_it_was_said(trained):
    norm = jn.nnx.Norm(jn.freeze(jn.BatchNorm(), trained=trained), 3)
    jn.nnx.freeze(norm, trained=not trained)
    grads = nnx.grad(lambda norm: (norm(X) ** 3).sum())(norm)
    assert (grads["scale"][...] != 0).all() == trained
    jn.nnx.unfreeze(norm)
    assert norm.spec == jn.freeze(jn.BatchNorm(), trained=trained)


def test_what_cannot_be_frozen():
    theirs = NNXResNet18(nnx.BatchNorm, width=4, rngs=nnx.Rngs(0))
    says(lambda: jn.nnx.freeze(theirs), "is flax.nnx.BatchNorm", "jaxnorm.nnx.BatchNorm")
    ours = resnet("spec")
    says(
        lambda: jn.nnx.freeze(ours, "heads"),
        "freeze: the model has no norms that select='heads' means",
        "blocks.0.norm1",
    )
    says(lambda: jn.nnx.freeze(ours, 5), "select=5 is none of", error=TypeError)
    says(lambda: jn.nnx.unfreeze(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), "unfreeze", "Its norms are: none")
