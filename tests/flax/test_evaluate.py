"""How models are told to evaluate while they are recalibrated, and what is said of batches that do not fit them."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import KEY, MASK, ROWS, Net, Plain, norms_of_linen, norms_of_nnx, says

import jaxnorm as jn


class NetTrain(Net):
    def __call__(self, x, train):
        return self.run(x, not train)


class NetTraining(Net):
    def __call__(self, x, *, training):
        return self.run(x, not training)


class NetIsTraining(Net):
    def __call__(self, x, is_training):
        return self.run(x, not is_training)


class NetDeterministic(Net):
    def __call__(self, x, *, deterministic):
        return self.run(x, deterministic)


FLAGS = {NetTrain: "train", NetTraining: "training", NetIsTraining: "is_training", NetDeterministic: "deterministic"}


@pytest.mark.parametrize("net", FLAGS, ids=FLAGS.values())
def test_recalibration_knows_how_models_of_linen_are_told_to_evaluate(net):
    """Dropout would need a random key, and is off."""
    flag, model = FLAGS[net], net()
    variables = model.init(KEY, ROWS, **{flag: flag == "deterministic"})
    stats = jn.linen.recalibrate(model, variables, [ROWS[:3], ROWS[3:]])["batch_stats"]["BatchNorm_0"]
    kernel = variables["params"]["Dense_0"]["kernel"]
    exact = np.asarray(ROWS, float) @ np.asarray(kernel, float)
    np.testing.assert_allclose(stats["mean"], exact.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stats["var"], exact.var(0), rtol=1e-4)


class NnxNet(nnx.Module):
    def __init__(self):
        self.norm = jn.nnx.BatchNorm(8, rngs=nnx.Rngs(0))

    def run(self, x, evaluating):
        assert evaluating is True
        return self.norm(x)


class NnxTrain(NnxNet):
    def __call__(self, x, *, train):
        return self.run(x, not train)


class NnxTraining(NnxNet):
    def __call__(self, x, training):
        return self.run(x, not training)


class NnxIsTraining(NnxNet):
    def __call__(self, x, *, is_training):
        return self.run(x, not is_training)


class NnxDeterministic(NnxNet):
    def __call__(self, x, deterministic):
        return self.run(x, deterministic)


@pytest.mark.parametrize("net", [NnxTrain, NnxTraining, NnxIsTraining, NnxDeterministic])
def test_recalibration_knows_how_models_of_nnx_are_told_to_evaluate(net):
    model = net()
    jn.nnx.recalibrate(model, [ROWS[:3], ROWS[3:]])
    np.testing.assert_allclose(model.norm.mean[...], np.asarray(ROWS, float).mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.norm.var[...], np.asarray(ROWS, float).var(0), rtol=1e-5)


class Tempered(Net):
    def __call__(self, x, temperature):
        return self.run(x / temperature, True)


class NnxTempered(NnxNet):
    def __call__(self, x, temperature):
        return self.run(x / temperature, True)


def test_an_argument_that_the_model_requires_is_asked_for_by_its_name():
    model, halved = Tempered(), ROWS / 2
    variables = model.init(KEY, ROWS, 2.0)
    says(lambda: jn.linen.recalibrate(model, variables, [ROWS]), "recalibrate", "temperature=")
    stats = jn.linen.recalibrate(model, variables, [ROWS], temperature=2.0)["batch_stats"]["BatchNorm_0"]
    exact = np.asarray(halved, float) @ np.asarray(variables["params"]["Dense_0"]["kernel"], float)
    np.testing.assert_allclose(stats["mean"], exact.mean(0), rtol=1e-4, atol=1e-5)
    model = NnxTempered()
    says(lambda: jn.nnx.recalibrate(model, [ROWS]), "recalibrate", "temperature=")
    jn.nnx.recalibrate(model, [ROWS], temperature=2.0)
    np.testing.assert_allclose(model.norm.mean[...], np.asarray(halved, float).mean(0), rtol=1e-5)


def test_a_mask_by_position_is_no_flag():
    """It landed in `use_running_average`, and was ignored without a word: the mapping form names it."""
    masked = np.asarray(ROWS, float)[:10]
    for model, variables, name in norms_of_linen():
        says(lambda m=model, v=variables: jn.linen.recalibrate(m, v, [(ROWS, MASK)]), r"[\"']?x[\"']?:|dict\(|mapping")
        stats = jn.linen.recalibrate(model, variables, [{"x": ROWS, name: MASK}])["batch_stats"]
        np.testing.assert_allclose(stats["mean"], masked.mean(0), rtol=1e-5)
        np.testing.assert_allclose(stats["var"], masked.var(0), rtol=1e-5)
    for model, name in norms_of_nnx():
        says(lambda m=model: jn.nnx.recalibrate(m, [(ROWS, MASK)]), r"[\"']?x[\"']?:|dict\(|mapping")
        np.testing.assert_array_equal(model.mean[...], 0)
        jn.nnx.recalibrate(model, [{"x": ROWS, name: MASK}])
        np.testing.assert_allclose(model.mean[...], masked.mean(0), rtol=1e-5)
        np.testing.assert_allclose(model.var[...], masked.var(0), rtol=1e-5)


class KeywordOnly(Net):
    def __call__(self, x, *, train=False):
        return self.run(x, not train)


class NnxPlain(NnxNet):
    def __call__(self, x):
        return self.run(x, True)


LABELS = jnp.arange(16) % 3


@pytest.mark.parametrize("net", [NetTrain, Plain, KeywordOnly])
def test_batches_with_labels(net):
    """A loader of pairs: the label lands in `train`, or nowhere."""
    model = net()
    variables = model.init(KEY, ROWS, **({"train": False} if net is not Plain else {}))
    loader = [(ROWS[:8], LABELS[:8]), (ROWS[8:], LABELS[8:])]
    says(lambda: jn.linen.recalibrate(model, variables, loader), "recalibrate", r"x for x, _ in")
    stats = jn.linen.recalibrate(model, variables, (x for x, _ in loader))["batch_stats"]["BatchNorm_0"]
    exact = np.asarray(ROWS, float) @ np.asarray(variables["params"]["Dense_0"]["kernel"], float)
    np.testing.assert_allclose(stats["mean"], exact.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", [NnxPlain, NnxTrain, NnxTraining])
def test_batches_with_labels_for_nnx(net):
    model = net()
    loader = [(ROWS[:8], LABELS[:8]), (ROWS[8:], LABELS[8:])]
    says(lambda: jn.nnx.recalibrate(model, loader), "recalibrate", r"x for x, _ in")
    jn.nnx.recalibrate(model, (x for x, _ in loader))
    np.testing.assert_allclose(model.norm.mean[...], np.asarray(ROWS, float).mean(0), rtol=1e-5)
