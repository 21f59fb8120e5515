"""The main job: its options, a small run of it for real, and what it refuses."""

import json
import subprocess
import sys

import pytest

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
    done = demo("--norms", "batch,none", "--batch-sizes", "8", "--seeds", "2", "--steps", "12", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "one at a time" in done.stdout
    assert str(tmp_path / "norms.png") in done.stdout
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "norms.json").read_text())["results"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--norms", "batch,weight"], "'weight' is unknown; choose from none, batch"),
        (["--batch-sizes", "2,x"], "'2,x' is not a list of numbers"),
        (["--batch-sizes", "4096"], "4096 is not between 1 and"),
        (["--seeds", "0"], "0 is less than 1"),
        (["--steps", "many"], "Invalid value for '--steps'"),
        (["--out", "/dev/null/folder"], "cannot write to"),
        (["--nonsense"], "No such option"),
    ],
)
def test_bad_arguments_are_said_before_anything_runs(arguments, words):
    done = demo(*arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
