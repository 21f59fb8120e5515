"""What is said of a dtype, an offset or an implementation that can't be."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import says

import jaxnorm as jn

X = jnp.ones((3, 4))

REFUSED = {
    "integer y": (lambda: jn.layer_norm(X, dtype=jnp.int8), "layer_norm: dtype=int8 is not floating point or complex"),
    "no dtype": (lambda: jn.layer_norm(X, dtype="float3"), "layer_norm: dtype='float3' is not a dtype"),
    "real y": (
        lambda: jn.rms_norm(X.astype(complex), dtype="float32"),
        "rms_norm: dtype=float32 and x has dtype complex64: y would lose its imaginary part",
    ),
    "dtype of a spec": (lambda: jn.BatchNorm(dtype=int), "BatchNorm: dtype=int64 is not floating point"),
    "dtype of a scaler": (lambda: jn.FeatureScaler(dtype="int8"), "FeatureScaler: dtype=int8 is not floating point"),
    "dtype of parameters": (
        lambda: jn.GroupNorm(groups=2).init(4, dtype="bfloat16"),
        "GroupNorm.init got an unexpected keyword argument 'dtype'. Did you mean param_dtype=?",
    ),
    "traced offset": (
        lambda: jax.jit(lambda o: jn.layer_norm(X, scale_offset=o))(1.0),
        "layer_norm: scale_offset is traced, but it is a part of the program",
    ),
    "array": (lambda: jn.RMSNorm(scale_offset=jnp.ones(4)), "RMSNorm: scale_offset=(1.0, 1.0, 1.0, 1.0) is not"),
    "text": (lambda: jn.rms_norm(X, scale_offset="1"), "rms_norm: scale_offset='1' is not a finite real number"),
    "flag": (lambda: jn.Identity(scale_offset=True), "Identity: scale_offset=True is not a finite real number"),
    "nan": (lambda: jn.GroupNorm(groups=2, scale_offset=np.nan), "scale_offset=nan is not a finite real number"),
    "drop-in of linen": (
        lambda: jn.linen.LayerNorm(scale_offset=None).init(jax.random.key(0), X),
        "LayerNorm: scale_offset=None is not a finite real number",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, words = REFUSED[name]
    says(call, re.escape(words), error=TypeError)


@pytest.mark.parametrize("spec", [jn.BatchNorm(implementation="cuda"), jn.Identity(implementation="cuda")], ids=str)
def test_unknown_implementations(spec):
    with pytest.raises(ValueError, match="implementation='cuda' is not known"):
        spec.apply(*spec.init(4), X, train=True)
