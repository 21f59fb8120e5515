"""Statistics of models of nnx, while they accumulate and recalibrate."""

import numpy as np
import pytest
from flax import nnx
from parts import BN, MEAN, VAR, WHERE, X, close

import jaxnorm as jn


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = jn.nnx.BatchNorm(3, momentum=0.9, rngs=rngs), jn.nnx.Norm(BN, 3)
        self.drop, self.stateless = nnx.Dropout(0.5, rngs=rngs), jn.nnx.Norm(jn.LayerNorm(), 3)

    def __call__(self, x, where=None):
        return self.stateless(self.norm(self.drop(self.first(x, mask=where)), where=where))


def test_accumulating_and_recalibrating_in_nnx():
    model = NnxNet(nnx.Rngs(0))
    before = nnx.graphdef(model)
    part = nnx.jit(lambda model, x, where: model(x, where))
    jn.nnx.accumulate(model)
    for rows in (slice(5), slice(5, 24)):
        part(model, X[rows], WHERE[rows])
    jn.nnx.commit(model)
    close(jn.RunningStats(model.first.mean[...], model.first.var[...]), 0.1 * MEAN, 0.9 + 0.1 * VAR)
    jn.nnx.recalibrate(model, [(X[rows], WHERE[rows]) for rows in (slice(1), slice(1, 10), slice(10, 24))])
    close(jn.RunningStats(model.first.mean[...], model.first.var[...]), MEAN, VAR)
    assert nnx.graphdef(model) == before


@pytest.mark.parametrize("of", [lambda norm: norm, nnx.state], ids=["module", "state"])
@pytest.mark.parametrize("what", [jn.accumulate, jn.commit, lambda state: jn.merge_running(state, state)])
def test_variables_of_nnx_are_refused(what, of):
    """Running statistics within them are not found: nothing would happen."""
    with pytest.raises(TypeError, match=r"in variables of flax\.nnx\. For a model, jaxnorm\.nnx has"):
        what(of(jn.nnx.Norm(BN, 3)))


def test_replicas_of_nnx_merge():
    one, other = (jn.nnx.BatchNorm(3, rngs=nnx.Rngs(0)) for _ in range(2))
    one(X[:12]), other(X[12:])
    states = [nnx.to_pure_dict(nnx.state(norm, nnx.BatchStat)) for norm in (one, other)]
    merged = jn.merge_running(*states)
    np.testing.assert_allclose(merged["mean"], (states[0]["mean"] + states[1]["mean"]) / 2, rtol=1e-6)
    nnx.update(one, merged)
    np.testing.assert_array_equal(one.var[...], merged["var"])
