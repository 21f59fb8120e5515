"""Messages about arguments that only some norms take."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn

X = jnp.ones((2, 4, 6))
COMPLEX = X.astype(jnp.complex64)
STATE = jn.BatchRenorm().init(6)[1]
CASES = {
    "complex tanh": (lambda: jn.dynamic_tanh(COMPLEX), TypeError, "dynamic_tanh: the data have dtype complex64"),
    "complex threshold": (lambda: jn.filter_response_norm(COMPLEX, threshold=0.0), TypeError, "for real numbers"),
    "complex sigmoid": (lambda: jn.evo_norm_s0(COMPLEX, groups=2), TypeError, "evo_norm_s0: the data have dtype"),
    "complex maximum": (lambda: jn.evo_norm_b0(COMPLEX, None, train=True), TypeError, "a maximum is for real"),
    "groups": (lambda: jn.EvoNormS0(groups=4).init(6), ValueError, "EvoNormS0.init: groups=4 does not divide 6"),
    "window": (lambda: jn.local_response_norm(X, size=0), ValueError, "size=0 is not a positive int"),
    "window of a spec": (
        lambda: jn.LocalResponseNorm(size=2.5).apply(jn.Affine(), None, X, train=True),
        ValueError,
        "size=2.5 is not a positive int",
    ),
    "alpha": (lambda: jn.local_response_norm(X, size=3, alpha=-1.0), ValueError, "alpha=-1.0 is not 0 or more"),
    "order": (lambda: jn.unit_norm(X, order=0), ValueError, "order=0 is not a number above 0"),
    "order by name": (lambda: jn.unit_norm(X, order="fro"), ValueError, "order='fro' is not a number"),
    "order of NaN": (lambda: jn.unit_norm(X, order=math.nan), ValueError, "order=nan is not a number"),
    "steps": (lambda: jn.spectral_norm(X, steps=True), ValueError, "steps=True is not an int of at least 0"),
    "no state": (
        lambda: jn.batch_renorm(X, None, train=True),
        ValueError,
        "batch_renorm: state is None. Without running statistics it is batch norm: jaxnorm.batch_norm.",
    ),
    "r_max": (lambda: jn.batch_renorm(X, STATE, train=True, r_max=0.5), ValueError, "r_max=0.5 is not 1 or more"),
    "d_max": (lambda: jn.batch_renorm(X, STATE, train=True, d_max=-1), ValueError, "d_max=-1 is not 0 or more"),
    "threshold": (
        lambda: jn.filter_response_norm(X, threshold=jnp.ones(4)),
        ValueError,
        "threshold has shape (4,) and x has shape (2, 4, 6)",
    ),
    "alpha of tanh": (lambda: jn.dynamic_tanh(X, alpha=jnp.ones(4)), ValueError, "alpha has shape (4,)"),
    "initial alpha": (lambda: jn.DynamicTanh(initial_alpha="a"), TypeError, "initial_alpha='a' is not a finite real"),
    "kernel": (lambda: jn.simple_norm(X, implementation="pallas"), ValueError, "is for layer and RMS norm"),
    "ddof": (lambda: jn.simple_norm(X, ddof=-1), ValueError, "ddof=-1 is not an int"),
    "ddof of all": (lambda: jn.simple_norm(X, ddof=6), ValueError, "ddof=6 takes as much off as there are data, 6"),
    "no alpha": (lambda: jn.dynamic_tanh(X, alpha=None), TypeError, "dynamic_tanh: alpha is None"),
    "no v": (lambda: jn.evo_norm_s0(X, v=None, groups=2), TypeError, "evo_norm_s0: v is None"),
    "no logits": (
        lambda: jn.SwitchableNorm().apply(jn.SwitchableAffine(), jn.SwitchableNorm().init(6)[1], X, train=True),
        TypeError,
        "SwitchableNorm: mean_logits is None",
    ),
    "one position": (lambda: jn.filter_response_norm(jnp.ones((2, 6))), ValueError, "none to take statistics over"),
    "params of another": (
        lambda: jn.FilterResponseNorm().apply(jn.Affine(), None, X, train=True),
        TypeError,
        "must be a jaxnorm.ThresholdedAffine",
    ),
    "a dict": (
        lambda: jn.DynamicTanh().apply({"alpha": 1}, None, X, train=True),
        TypeError,
        "jaxnorm.TanhAffine(**params)",
    ),
    "channels": (
        lambda: jn.EvoNormB0().apply(*jn.EvoNormB0().init(6), jnp.swapaxes(X, 1, 2), train=True),
        ValueError,
        "For channels-first data, use channel_axis=1.",
    ),
    "a traced order": (lambda: jax.jit(lambda p: jn.unit_norm(X, order=p))(2.0), ValueError, "is not a number above 0"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_fact_the_value_and_the_remedy(name):
    call, error, words = CASES[name]
    with pytest.raises(error) as found:
        call()
    assert words in str(found.value)


def test_numbers_of_numpy_do():
    np.testing.assert_array_equal(jn.unit_norm(X, order=np.float32(2)), jn.unit_norm(X))
    jn.local_response_norm(X, size=np.int64(3))
