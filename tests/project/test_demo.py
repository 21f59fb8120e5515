"""The main job: its options, a small run of it for real, and what it refuses."""

import json
import subprocess
import sys

import pytest

from jaxnorm.demo.options import TRAINING_IMAGES, Options

pytestmark = pytest.mark.once

for package in ("matplotlib", "rich", "sklearn", "typer"):
    pytest.importorskip(package)


def demo(*arguments):
    # As a user runs it: other settings than the tests'.
    return subprocess.run(
        [sys.executable, "-m", "jaxnorm", *arguments],
        capture_output=True,
        text=True,
        env={"COLUMNS": "200"},
        check=False,
    )


@pytest.mark.long
def test_a_small_experiment(tmp_path):
    done = demo("--norms", "batch,none", "--batch-sizes", "8", "--seeds", "2", "--epochs", "1", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "one at a time" in done.stdout
    assert "At batch size 8 the mean of a batch is off by" in done.stdout
    assert str(tmp_path / "norms.png") in done.stdout
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")
    batch, none = json.loads((tmp_path / "norms.json").read_text())["results"]
    assert none["batch_errors"] == []
    # The deeper, the fewer values of a channel a batch has.
    assert 0 < batch["batch_errors"][0] < batch["batch_errors"][2] < 1


@pytest.mark.long
def test_networks_that_diverge(tmp_path):
    sizes = ("--norms", "batch", "--batch-sizes", "32,997", "--seeds", "1", "--epochs", "1")
    done = demo(*sizes, "--learning-rates", "1e30", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert json.loads((tmp_path / "norms.json").read_text())["results"][0]["batch_errors"] == [None] * 3


def test_each_run_sees_as_many_images():
    options = Options()
    for size in (1, *options.batch_sizes):
        assert options.epochs * TRAINING_IMAGES - size < options.steps(size) * size <= options.epochs * TRAINING_IMAGES
        assert options.evaluated_at(size)[-1] == options.steps(size)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--norms", "batch,weight"], "'weight' is unknown; choose from none, batch"),
        (["--batch-sizes", "2,x"], "'2,x' is not a list of numbers"),
        (["--batch-sizes", "4096"], "4096 is not between 1 and"),
        (["--seeds", "0"], "0 is less than 1"),
        (["--epochs", "many"], "Invalid value for '--epochs'"),
        (["--out", "/dev/null/folder"], "cannot write to"),
        (["--nonsense"], "No such option"),
    ],
)
def test_bad_arguments_are_said_before_anything_runs(arguments, words):
    done = demo(*arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
