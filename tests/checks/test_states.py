"""What is said of states and of data that are none for a statistic."""

import numpy as np
from flax import nnx
from models import BN, KEY, ROWS, Plain, says

import jaxnorm as jn


def test_one_array_is_no_list_of_batches():
    """Each row would be a batch, and give a norm one value per statistic: a variance of 0."""
    model = nnx.Sequential(nnx.Linear(8, 6, rngs=nnx.Rngs(0)), jn.nnx.BatchNorm(6, rngs=nnx.Rngs(0)))
    says(lambda: jn.nnx.recalibrate(model, ROWS), "recalibrate", r"\[x\]", error=ValueError)
    np.testing.assert_array_equal(model.layers[1].var[...], 1)
    net = Plain()
    variables = net.init(KEY, ROWS)
    says(lambda: jn.linen.recalibrate(net, variables, ROWS), "recalibrate", r"\[x\]", error=ValueError)
    params, state = BN.init(8)
    step = lambda state, x: BN.apply(params, state, x, train=False)[1]
    says(lambda: jn.recalibrate(step, state, ROWS), "recalibrate", r"\[x\]", error=ValueError)


def test_a_batch_of_one_beside_others_is_none_of_that():
    model = jn.nnx.BatchNorm(8, rngs=nnx.Rngs(0))
    jn.nnx.recalibrate(model, [ROWS[:1], ROWS[1:]])
    np.testing.assert_allclose(model.var[...], np.asarray(ROWS, float).var(0), rtol=1e-5)
