"""The package as users meet it: a light import, the promised names, documented."""

import inspect
import pathlib
import re
import subprocess
import sys
from importlib.util import find_spec

import cases
import oracle
import pytest
import wider

import jaxnorm as jn
from jaxnorm import _functional
from jaxnorm._specs.base import Norm

ROOT = pathlib.Path(__file__).parents[2]
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


LIBRARIES = ("equinox", "haiku")
MODULES = (jn.inspection, jn.linen, jn.nnx, jn.torch, *(getattr(jn, name) for name in LIBRARIES if find_spec(name)))
PUBLIC = {
    **{name: getattr(jn, name) for name in jn.__all__ if name not in ("inspection", "linen", "nnx", "torch")},
    **{f"{m.__name__}.{name}": getattr(m, name) for m in MODULES for name in m.__all__},
    **{f"FeatureScaler.{name}": getattr(jn.FeatureScaler, name) for name in ("init", "apply", "inverse")},
}  # fmt: skip
# What is a matter of this library, and in no paper.
OURS = {
    "from_dict",
    "to_dict",
    "Accumulating",
    "Affine",
    "Identity",
    "Recalibrating",
    "Spec",
    "commit",
    "jaxnorm.nnx.commit",
    "leaf",
}
OURS |= {"jaxnorm.linen.patched", "jaxnorm.nnx.patched"}
OURS |= {name for name in PUBLIC if name.startswith("FeatureScaler.")}


# What raises nothing of its own, and does not say so either.
SILENT = {
    "Accumulating", "Affine", "EvoAffine", "GatedAffine", "Inspection", "Moments", "Recalibrating", "RunningStats",
    "SingularVectors", "SwitchableAffine", "TanhAffine", "ThresholdedAffine", "leaf",
}  # fmt: skip
SILENT |= {
    "jaxnorm.inspection.findings",
    "jaxnorm.linen.patched",
    "jaxnorm.nnx.patched",
    "jaxnorm.nnx.accumulate",
    "jaxnorm.nnx.commit",
}


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings(name):
    """A line; a formula or definition; shapes; what is raised, if anything; the paper, if there is one; an example."""
    doc = inspect.getdoc(PUBLIC[name])
    text, _ = doc.split(">>> ", 1)
    assert re.match(r".*(\.|: `jn\.\w+`\.?)(\n\n| )", doc)
    assert ">>> " in doc
    assert re.search("Papers?: ", text) or name in OURS
    assert bool(re.search(r"[Rr]aises?\b", text)) == (name not in SILENT)
    if not name.startswith("FeatureScaler."):
        assert re.search(r"[=←→]", text)
    assert re.search(r"[Ss]hape|\(channels,\)|number of features", text)


@pytest.mark.parametrize("name", [n for n, v in PUBLIC.items() if inspect.isfunction(v)])
def test_docstrings_name_all_arguments(name):
    doc = inspect.getdoc(PUBLIC[name])
    arguments = inspect.signature(PUBLIC[name]).parameters
    assert "Args:" in doc or not arguments
    for argument in arguments:
        assert argument == "self" or f"{argument}" in doc


def test_signatures():
    """The contract, argument by argument and default by default."""
    norm = "x, scale=None, bias=None, *, "
    output = ", scale_offset=0.0, dtype=None, implementation=None"
    added = norm.replace("x, ", "x, residual, ", 1)
    expected = {
        "moments": "x, axis=None, *, where=None, axis_name=None, keepdims=False, extremes=False",
        "merge": "*parts, axis=None, axis_name=None",
        "instance_norm": norm + "channel_axis=-1, batch_axis=0, epsilon=1e-05, where=None, axis_name=None" + output,
        "layer_norm": norm + "axis=-1, epsilon=1e-05, where=None, axis_name=None" + output,
        "rms_norm": norm + "axis=-1, epsilon=1e-05, where=None, axis_name=None" + output,
        "add_layer_norm": added + "axis=-1, epsilon=1e-05, where=None, axis_name=None" + output,
        "add_rms_norm": added + "axis=-1, epsilon=1e-05, where=None, axis_name=None" + output,
        "group_norm": norm
        + "groups, channel_axis=-1, batch_axis=0, epsilon=1e-05, where=None, axis_name=None"
        + output,
        "batch_norm": "x, state, scale=None, bias=None, *, train, channel_axis=-1, momentum=0.99, epsilon=1e-05, "
        "ddof=0, where=None, axis_name=None, virtual_batch_size=None" + output,
        "batch_renorm": "x, state, scale=None, bias=None, *, train, channel_axis=-1, momentum=0.99, epsilon=1e-05, "
        "r_max=3.0, d_max=5.0, ddof=0, where=None, axis_name=None" + output,
        "evo_norm_b0": "x, state, scale=None, bias=None, v=1.0, *, train, channel_axis=-1, batch_axis=0, "
        "momentum=0.99, epsilon=1e-05, ddof=0, where=None, axis_name=None" + output,
        "evo_norm_s0": norm.replace("*", "v=1.0, *")
        + "groups, channel_axis=-1, batch_axis=0, epsilon=1e-05, where=None, axis_name=None"
        + output,
        "filter_response_norm": norm.replace("*", "threshold=None, *")
        + "channel_axis=-1, batch_axis=0, epsilon=1e-06, where=None, axis_name=None"
        + output,
        "global_response_norm": norm
        + "channel_axis=-1, batch_axis=0, epsilon=1e-06, where=None, axis_name=None"
        + output,
        "local_response_norm": norm + "size, alpha=0.0001, beta=0.75, k=1.0, channel_axis=-1, where=None" + output,
        "unit_norm": norm + "axis=-1, order=2, epsilon=0.0, where=None, axis_name=None" + output,
        "simple_norm": norm + "axis=-1, epsilon=1e-06, ddof=0, where=None, axis_name=None" + output,
        "dynamic_tanh": norm.replace("*", "alpha=0.5, *") + "axis=-1, where=None" + output,
        "adaptive_instance_norm": "content, style, *, channel_axis=-1, batch_axis=0, epsilon=1e-05, where=None, "
        "style_where=None, dtype=None, implementation=None",
        "weight_norm": "w, scale=None, *, output_axis=-1, epsilon=0.0, dtype=None",
        "standardize_weights": "w, scale=None, *, output_axis=-1, epsilon=1e-05, dtype=None",
        "spectral_norm": "w, state=None, steps=1, *, output_axis=-1, epsilon=0.0, dtype=None",
    }
    verbs = {name for name in _functional.__all__ if hasattr(jn, name)}
    assert expected.keys() == verbs | {"moments", "merge"}
    for name, want in expected.items():
        signature = inspect.signature(getattr(jn, name))
        plain = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
        bare = signature.replace(parameters=plain, return_annotation=inspect.Signature.empty)
        assert str(bare) == f"({want})"


def test_the_reference_has_every_name():
    """What `make docs` sets: each public name once, and no other."""
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    documented = re.findall(r"^\.\. auto(?:class|function):: (\S+)$", pages, re.MULTILINE)
    names = {name if name.startswith("jaxnorm.") else f"jaxnorm.{name}" for name in PUBLIC if "Scaler." not in name}
    missing = [f"jaxnorm.{name}" for name in LIBRARIES if not find_spec(name)]
    assert len(documented) == len({*documented})
    assert {name for name in documented if not name.startswith(tuple(missing))} == names


def test_every_norm_is_in_the_tables_of_tests():
    """One that is left out somewhere would pass."""
    norms = {v for v in vars(jn).values() if isinstance(v, type) and issubclass(v, Norm)}
    of = lambda specs: {type(spec) for spec in specs}
    rows = cases.CASES + cases.WIDER
    assert of(case.spec for case in rows) == of(case.spec for case in rows if case.name in cases.EACH)
    assert of(case.spec for case in rows) == norms - {jn.Identity}
    assert of(case.spec for case in cases.WIDER) == {*wider.FORMULAS}
    standard = norms - {*wider.FORMULAS}
    assert of(cases.HOSTILE.values()) == standard - {jn.Identity, jn.BatchInstanceNorm, *oracle.UNCENTERED}
    assert of(cases.SPECS + cases.FAMILY) == norms
