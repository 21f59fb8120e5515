"""Norms of a model are selected by class, by place, or by a function of both."""

import pytest
from flax import linen as nn
from flax import nnx

import jaxnorm as jn
from jaxnorm._flax.selection import is_selected, nothing_selected

PATH = ("blocks", 0, "norm")
BATCH, LAYER = jn.nnx.Norm(jn.BatchNorm(), 3), jn.nnx.Norm(jn.LayerNorm(), 3)
DROP_IN = jn.nnx.BatchNorm(3, rngs=nnx.Rngs(0))
FROZEN = jn.nnx.Norm(jn.freeze(jn.BatchNorm()), 3)


NORMS = {"batch": BATCH, "layer": LAYER, "drop-in": DROP_IN, "frozen": FROZEN}
# What selects, and which of them.
SELECTS = {
    "nothing said": (None, {"batch", "drop-in", "frozen"}),
    "a spec": (jn.BatchNorm, {"batch", "frozen"}),
    "a module of flax": (nnx.BatchNorm, {"drop-in"}),
    "several": ((jn.nnx.BatchNorm, jn.LayerNorm), {"layer", "drop-in"}),
    "any norm by its spec": (jn.nnx.Norm, {"batch", "layer", "frozen"}),
    "a part": ("blocks", set(NORMS)),
    "a part of a part": ("blocks.0", set(NORMS)),
    "by slashes": ("blocks/0/norm", set(NORMS)),
    "the beginning of a name": ("block", set()),
    "the end of a place": ("0", set()),
    "more than a place": ("blocks.0.norm.scale", set()),
    "a function": (lambda path, module: path[1] == 0 and module is LAYER, {"layer"}),
    "another library": (nn.Module, set()),
}


@pytest.mark.parametrize("name", SELECTS)
def test_what_is_selected(name):
    select, want = SELECTS[name]
    assert {name for name, norm in NORMS.items() if is_selected(select, PATH, norm)} == want


def test_the_message_names_the_norms_that_there_are():
    assert nothing_selected("freeze", None, [PATH, ()]) == (
        "freeze: the model has no norms with running statistics. Its norms are: blocks.0.norm, the model itself."
    )
    assert "norms that select='x' means. Its norms are: none." in nothing_selected("freeze", "x", [])
