"""The benchmarks run, and count what they say that they count."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import device_tables, family, hlo, memory
from benchmarks.__main__ import app
from benchmarks.cases import CASES, Case
from benchmarks.compiling import STAGES
from benchmarks.libraries import installed

pytestmark = pytest.mark.once
ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_names_of_cases_tell_them_apart():
    assert len({case.name for case in CASES}) == len(CASES)


def test_speed(tmp_path):
    run("speed", "--only", "batch 256×512", "--rounds", "2", "--malloc", "default", "--out", str(tmp_path))
    (row,) = json.loads((tmp_path / "speed-default.json").read_text())["speed-default"]
    assert set(installed()) | {"floor"} <= set(row["both"]["ratios"])
    assert row["both"]["ratios"]["flax"] == 1
    assert (tmp_path / "speed-default.png").stat().st_size > 10_000


def test_compiling(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.compiling.DEPTH", 2)
    run("compiling", "--rounds", "1", "--out", str(tmp_path))
    rows = json.loads((tmp_path / "compiling.json").read_text())["compiling"]
    assert [(row["norm"], row["target"]) for row in rows] == [(n, "cpu") for n in ("batch", "layer", "group", "RMS")]
    assert all(row[library][stage] > 0 for row in rows for library in ("jaxnorm", "flax") for stage in STAGES)


def test_family(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.family.SHAPE", (2, 6, 6, 64))
    run("family", "--only", "unit", "--rounds", "2", "--out", str(tmp_path))
    (row,) = json.loads((tmp_path / "family.json").read_text())["family"]
    assert row["kept"]["jaxnorm"] < row["kept"]["by hand"]


def test_memory(tmp_path):
    run("memory", "--only", "batch 256×512", "--out", str(tmp_path))
    (found,) = json.loads((tmp_path / "memory.json").read_text())["memory"].values()
    assert 1 <= found["jaxnorm"] < 1.02 < found["flax"]


@pytest.mark.long
@pytest.mark.parametrize("name", family.FAMILY)
def test_a_formula_by_hand_is_that_of_the_norm(name):
    """And ours keeps x and vectors for the backward pass."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        _, x, params = family.data(name, (4, 14, 14, 64))
        ours, by_hand = (jax.jit(f)(x, params)[0] for f in family.contestants(name).values())
        np.testing.assert_allclose(ours, by_hand, rtol=2e-5, atol=2e-5)
        _, x, params = family.data(name, (4, 14, 14, 64), "bfloat16")
        assert family.kept(family.contestants(name)["jaxnorm"], x, params) < 1.2


@pytest.mark.parametrize("kind", ["batch", "instance", "group", "layer", "rms"])
def test_what_is_kept_is_x_and_vectors(kind):
    case = Case(kind, (512, 768) if kind in ("layer", "rms") else (32, 28, 28, 64), "bfloat16")
    with jax.numpy_dtype_promotion("standard"):
        assert 1 <= memory.kept(installed()["jaxnorm"], case) <= 1.02


@pytest.mark.long
def test_accuracy(tmp_path):
    run("accuracy", "--out", str(tmp_path))
    for errors in json.loads((tmp_path / "accuracy.json").read_text())["accuracy"].values():
        assert errors["jaxnorm"]["y"] < 16


def test_passes_are_counted():
    """By hand: x + 1 reads and writes; a loop of three trips does so three times; a slice is read as a slice."""
    x = jnp.ones((512, 1024))
    text = lambda f: jax.jit(f).lower(x).compile().as_text()
    count = lambda f: hlo.traffic(text(f)).moved / x.nbytes
    assert hlo.unit(text(lambda x: x + 1)) == x.nbytes
    assert count(lambda x: x + 1) == pytest.approx(2)
    assert count(lambda x: x[:64] + 1) == pytest.approx(2 / 8)
    assert count(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: jnp.sin(x), x)) == pytest.approx(6, rel=0.4)
    branches = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x.sum(), lambda x: jnp.sin(x).sum() + x.sum(0).sum(), x)
    found = hlo.traffic(text(branches))
    assert found.in_conditionals > 0


def test_device(tmp_path):
    """On a CPU, tiny: one case of rows, by who is installed, each implementation of ours among them."""
    run("device", "--small", "--parts", "rows", "--only", "rms 64×768 f32", "--rounds", "2", "--out", str(tmp_path))
    saved = json.loads((tmp_path / "device-cpu.json").read_text())
    (row,) = saved["rows"]
    for which in ("forward", "both"):
        assert {"copy", "jaxnorm", "jaxnorm xla", "flax fast", "flax stable"} <= set(row[which])
        assert row[which]["jaxnorm"]["ms"] > 0
        assert row[which]["jaxnorm pallas"]["error"] == "NotImplementedError"
    assert "RMS f32 768" in (tmp_path / "device-cpu.txt").read_text()
    assert "| RMS f32 768 |" in run("device", "--show", str(tmp_path / "device-cpu.json"))


def test_the_pages_show_what_was_measured_on_a_gpu():
    file = ROOT / "benchmarks" / "results" / "device-h200.json"
    results = json.loads(file.read_text())
    section = (ROOT / "docs" / "benchmarks.md").read_text().split("\n## On a GPU\n")[1].split("\n## ")[0]
    tables = device_tables.markdown(results)
    _, shown = section.strip().split("\n\n", 1)
    assert shown.split("\n### What is behind")[0] == tables
    assert tables == run("device", "--show", str(file)).removesuffix("\n")
    words = " ".join((ROOT / "README.md").read_text().split())
    for between in device_tables.ranges(results):
        assert between in words
