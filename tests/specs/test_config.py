"""Specs become plain values, and specs again."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from cases import CASES
from models import says

import jaxnorm as jn


class Twice(jn.BatchNorm):
    """A norm of a user."""

    factor: float = jn.leaf(default=2.0)
    kind: str = "plain"


SPECS = [
    *(case.spec for case in CASES),
    jn.Identity(),
    jn.FeatureScaler(kind="minmax"),
    jn.freeze(jn.BatchNorm(momentum=0.9), trained=True),
    jn.BatchNorm(momentum=None, axis_name=("data", "model"), channel_axis=1),
    jn.LayerNorm(axis=(1, 2), dtype="bfloat16", implementation="xla", scale_offset=1.0),
    jn.BatchNorm(epsilon=jnp.array([[1e-5], [0.1]]), momentum=jnp.float32(0.9)),
    jn.BatchNorm(epsilon=np.float64(0.1), momentum=jnp.array([0.5, 0.9], "bfloat16")),
    Twice(factor=3.0, kind="other"),
    Twice(kind=(1, (2, "a"))),
    jn.BatchNorm(epsilon=np.int64(2**60 + 1)),
    jn.FeatureScaler(clip=10.0, center=False, channel_axis=(-2, -1)),
]


@pytest.mark.parametrize("write", [(json.dumps, json.loads), (yaml.safe_dump, yaml.safe_load)], ids=["json", "yaml"])
@pytest.mark.parametrize("spec", SPECS, ids=range(len(SPECS)))
def test_there_and_back(spec, write):
    dump, load = write
    again = jn.from_dict(load(dump(jn.to_dict(spec))), classes=[Twice])
    assert type(again) is type(spec)
    assert jax.tree.structure(again) == jax.tree.structure(spec)
    for got, want in zip(jax.tree.leaves(again), jax.tree.leaves(spec), strict=True):
        assert np.asarray(got).dtype == np.asarray(want).dtype
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
    assert again == spec


def test_what_somebody_wrote():
    text = """
    class: BatchNorm
    momentum: 0.9
    epsilon: [1.0e-5, 1.0e-3]
    axis_name: [batch, time]
    """
    want = jn.BatchNorm(momentum=0.9, epsilon=jnp.array([1e-5, 1e-3]), axis_name=("batch", "time"))
    assert jn.from_dict(yaml.safe_load(text)) == want
    assert jn.from_dict({"class": "RMSNorm"}) == jn.RMSNorm()


MISTAKES = {
    "use_scale='false' is not True or False": {"class": "BatchNorm", "use_scale": "false"},
    "track='no' is not True or False": {"class": "InstanceNorm", "track": "no"},
    "trained=None is not True": {"class": "FrozenNorm", "spec": {"class": "LayerNorm"}, "trained": None},
    "spec=5 is not a spec|not a mapping": {"class": "FrozenNorm", "spec": 5},
    "momentum=.*is not a number: an array has": {"class": "BatchNorm", "momentum": {"class": "LayerNorm"}},
    "momentum=.*dtyp.*is not a number": {"class": "BatchNorm", "momentum": {"array": 0.9, "dtyp": "float64"}},
    r"momentum=\['0.9'\] are not numbers": {"class": "BatchNorm", "momentum": ["0.9"]},
    "no norm|class": {"class": ["BatchNorm"]},
    "from_dict: class 'BatchNrom'. Did you mean 'BatchNorm'.*Known are: BatchInstanceNorm, BatchNorm": {
        "class": "BatchNrom"
    },
    "from_dict: class 'batch_norm'. Did you mean 'BatchNorm'": {"class": "batch_norm"},
    "from_dict: class 'Batchnorm'. Did you mean 'BatchNorm'": {"class": "Batchnorm"},
    "from_dict: class 'rms_norm'. Did you mean 'RMSNorm'": {"class": "rms_norm"},
    "from_dict: class None": {"momentum": 0.9},
    "BatchNorm has no field 'eps'.*Known are: axis_name, channel_axis": {"class": "BatchNorm", "eps": 1e-5},
    "BatchNorm.epsilon='1e-5' is text. YAML": yaml.safe_load("{class: BatchNorm, epsilon: 1e-5}"),
    "not a mapping of fields": "BatchNorm",
    "class 'Twice'": {"class": "Twice"},
    "channel_axis='last' is not an int": {"class": "BatchNorm", "channel_axis": "last"},
    "LayerNorm has no field 'momentum'": {"class": "FrozenNorm", "spec": {"class": "LayerNorm", "momentum": 0.9}},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_name_what_is_known(message):
    says(lambda: jn.from_dict(MISTAKES[message]), message)


def test_what_cannot_be_written_down():
    says(lambda: jn.to_dict(jn.BatchNorm), "not a spec")
    says(lambda: jn.to_dict({"class": "BatchNorm"}), "not a spec")
    says(lambda: jn.to_dict(jn.BatchNorm(axis_name=object())), "axis_name=<object.*can't be written down")
    says(lambda: jn.to_dict(jn.BatchNorm(epsilon=jnp.array(1j))), "no real number")
    says(lambda: jn.from_dict({"class": "BatchNorm"}, classes=[int]), "classes=.*is not a list of subclasses")
    says(lambda: jn.FrozenNorm(spec=5), "spec=5 is not a spec")
    says(lambda: jax.jit(lambda e: jn.to_dict(jn.BatchNorm(epsilon=e)))(0.1), "epsilon=.*traced")


def test_numbers_of_numpy_are_numbers():
    spec = jn.UnitNorm(order=np.float64(3))
    assert jn.from_dict(jn.to_dict(spec)) == spec == jn.UnitNorm(order=3.0)
    assert hash(spec) == hash(jn.UnitNorm(order=3.0))
