"""Flags in every way to say them, and what is said of those that contradict each other or are none."""

from functools import partial

import numpy as np
import pytest
from models import BN, KEY, MASK, ROWS, norms_of_linen, norms_of_nnx, says

import jaxnorm as jn


def test_flags_are_checked_while_recalibrating():
    batches = [{"x": ROWS, "use_running_average": MASK}]
    model, variables, _ = next(norms_of_linen())
    says(lambda: jn.linen.recalibrate(model, variables, batches), "use_running_average")
    for norm, _ in norms_of_nnx():
        says(lambda norm=norm: jn.nnx.recalibrate(norm, batches), "use_running_average")
    # What is a flag passes, whatever it says.
    for flag in (True, False):
        stats = jn.linen.recalibrate(model, variables, [ROWS], use_running_average=flag)["batch_stats"]
        np.testing.assert_allclose(stats["mean"], np.asarray(ROWS, float).mean(0), rtol=1e-5)


SPELLINGS = [({"train": True}, {"train": False}), ({"use_running_average": False}, {"use_running_average": True})]


@pytest.mark.parametrize("where", ["constructor", "call"])
@pytest.mark.parametrize(("training", "evaluation"), SPELLINGS, ids=["train", "use_running_average"])
def test_both_spellings_of_training_work_in_linen(training, evaluation, where):
    def run(variables, told, **kwargs):
        norm = partial(jn.linen.Norm, jn.BatchNorm(momentum=0.9), **(told if where == "constructor" else {}))
        return norm().apply(variables, ROWS, **({} if where == "constructor" else told), **kwargs)

    variables = jn.linen.Norm(jn.BatchNorm(momentum=0.9)).init(KEY, ROWS, train=False)
    y, updates = run(variables, training, mutable="batch_stats")
    exact = np.asarray(ROWS, float)
    np.testing.assert_allclose(y, (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(run(variables, evaluation), exact / np.sqrt(1 + 1e-5), rtol=1e-5)


@pytest.mark.parametrize("where", ["constructor", "call"])
@pytest.mark.parametrize(("training", "evaluation"), SPELLINGS, ids=["train", "use_running_average"])
def test_both_spellings_of_training_work_in_nnx(training, evaluation, where):
    def run(told):
        norm = partial(jn.nnx.Norm, jn.BatchNorm(momentum=0.9), 8, **(told if where == "constructor" else {}))()
        return norm(ROWS, **({} if where == "constructor" else told)), norm.mean[...]

    exact = np.asarray(ROWS, float)
    y, mean = run(training)
    np.testing.assert_allclose(y, (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mean, 0.1 * exact.mean(0), rtol=1e-5)
    y, mean = run(evaluation)
    np.testing.assert_allclose(y, exact / np.sqrt(1 + 1e-5), rtol=1e-5)
    np.testing.assert_array_equal(mean, 0)


@pytest.mark.parametrize("told", [{"train": True}, {"train": False}])
def test_both_spellings_at_once_are_refused(told):
    both = {**told, "use_running_average": told["train"]}
    variables = jn.linen.Norm(BN).init(KEY, ROWS, train=False)
    says(lambda: jn.linen.Norm(BN).apply(variables, ROWS, **both), "train", "use_running_average")
    says(lambda: jn.nnx.Norm(BN, 8)(ROWS, **both), "train", "use_running_average")
