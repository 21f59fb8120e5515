"""The package as users meet it: a light import, the promised names, documented."""

import inspect
import subprocess
import sys

import pytest

import jaxnorm as jn

CODE = """
import sys, jax, jaxtyping
before = set(sys.modules)
import jaxnorm
heavy = {name.split('.')[0] for name in set(sys.modules) - before} - {'jaxnorm', 'jax'}
print(sorted(heavy))
print(jaxnorm.linen.Norm.__name__)
"""


def test_import_brings_in_nothing_but_jax():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "Norm"]


def test_public_names():
    for name in jn.__all__:
        assert getattr(jn, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = jn.nothing


VERBS = [
    *(jn.instance_norm, jn.layer_norm, jn.rms_norm, jn.group_norm, jn.batch_norm, jn.moments, jn.merge),
    *(jn.accumulate, jn.merge_running, jn.recalibrate, jn.linen.recalibrate),
]


@pytest.mark.parametrize("verb", VERBS, ids=lambda v: v.__name__)
def test_docstrings_of_verbs(verb):
    doc = inspect.getdoc(verb)
    for part in ("=", "Args:", "Returns:", "Raises:", "Paper:", ">>> "):
        assert part in doc
    for name in inspect.signature(verb).parameters:
        assert name in doc


@pytest.mark.parametrize("name", [n for n in jn.__all__ if n not in ("linen", "nnx")])
def test_every_public_name_has_an_example(name):
    assert ">>> " in inspect.getdoc(getattr(jn, name))


def test_signatures():
    """The contract, argument by argument and default by default."""
    norm = "x, scale=None, bias=None, *, "
    expected = {
        "moments": "x, axis=None, *, where=None, axis_name=None, keepdims=False",
        "merge": "*parts, axis=None, axis_name=None",
        "instance_norm": norm + "channel_axis=-1, batch_axis=0, epsilon=1e-05, where=None, axis_name=None",
        "layer_norm": norm + "axis=-1, epsilon=1e-05, where=None, axis_name=None",
        "rms_norm": norm + "axis=-1, epsilon=1e-05, where=None, axis_name=None",
        "group_norm": norm + "groups, channel_axis=-1, batch_axis=0, epsilon=1e-05, where=None, axis_name=None",
        "batch_norm": "x, state, scale=None, bias=None, *, train, channel_axis=-1, momentum=0.99, epsilon=1e-05, "
        "ddof=0, where=None, axis_name=None, virtual_batch_size=None",
    }
    for name, want in expected.items():
        signature = inspect.signature(getattr(jn, name))
        plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
        bare = signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)
        assert str(bare) == f"({want})"
