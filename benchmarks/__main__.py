"""`python -m benchmarks`: what jaxnorm costs beside other libraries."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)

Out = Annotated[Path, typer.Option(help="Folder for tables, numbers and charts.")]
Only = Annotated[str, typer.Option(metavar="TEXT", help="Only the cases whose name has this in it.")]

# Fresh pages for every result take longer than most norms: with these settings, memory is kept for the next call.
_TUNED = {
    "MALLOC_TOP_PAD_": "1073741824",
    "MALLOC_MMAP_THRESHOLD_": "17179869184",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
}


@app.command()
def speed(
    out: Out = Path("results"),
    only: Only = "",
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of each measurement.")] = 15,
    malloc: Annotated[str, typer.Option(help="default, tuned, or both: how the C library hands out memory.")] = "both",
) -> None:
    """Time on this machine beside Flax, Haiku, Equinox and, where it is installed, PyTorch; then whole programs."""
    if malloc not in ("default", "tuned", "both"):
        raise typer.BadParameter(f"--malloc: {malloc!r} is not default, tuned or both")
    if malloc == "both":
        for setting in ("default", "tuned"):
            _again("speed", "--out", str(out), "--only", only, "--rounds", str(rounds), "--malloc", setting)
        if not only:
            _again("step", "--out", str(out))
        return
    if malloc == "tuned" and any(os.environ.get(name) != value for name, value in _TUNED.items()):
        _again(*sys.argv[1:], environment=_TUNED)
        return
    from benchmarks import tables

    tables.speed(out, only, rounds, malloc)


def _again(*arguments, environment=None):
    """This command in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "benchmarks", *arguments], env=os.environ | (environment or {}))
    if done.returncode:
        raise typer.Exit(done.returncode)


@app.command()
def step(out: Out = Path("results"), rounds: Annotated[int, typer.Option(min=2, help="Rounds.")] = 9) -> None:
    """Whole programs: a training step of a ResNet-18, a grid of configurations."""
    from benchmarks import tables

    tables.step(out, rounds)


@app.command()
def compiling(
    out: Out = Path("results"),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds.")] = 3,
    everywhere: Annotated[bool, typer.Option(help="For TPU v6e and H100, too: ahead of time, on this CPU.")] = False,
) -> None:
    """Time to trace, to lower and to compile networks of many norms, beside Flax."""
    from benchmarks.compiled import environment

    if everywhere and (python := environment()):
        given = ["--out", str(out), "--rounds", str(rounds), "--everywhere"]
        raise typer.Exit(subprocess.run([python, "-m", "benchmarks", "compiling", *given]).returncode)
    if everywhere:
        import benchmarks.targets  # noqa: F401 (its settings are read when jax starts)
    from benchmarks import tables
    from benchmarks.compiling import TARGETS

    tables.compiling(out, TARGETS if everywhere else TARGETS[:1], rounds)


@app.command()
def compiled(out: Out = Path("results")) -> None:
    """What programs compiled for TPU v5e, v6e, v5p and H100 move. No device is needed: these are no timings."""
    from benchmarks.compiled import environment

    if python := environment():
        raise typer.Exit(subprocess.run([python, "-m", "benchmarks", "compiled", "--out", str(out)]).returncode)
    from benchmarks import tables

    tables.compiled(out)


@app.command()
def accuracy(out: Out = Path("results")) -> None:
    """Worst errors on hostile inputs, against float64."""
    from benchmarks import tables

    tables.accuracy(out)


@app.command()
def family(
    out: Out = Path("results"),
    only: Only = "",
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of each measurement.")] = 9,
) -> None:
    """The wider family of norms, beside the same formulas by hand: time, and bytes kept."""
    from benchmarks import tables

    tables.family(out, only, rounds)


@app.command()
def memory(out: Out = Path("results"), only: Only = "") -> None:
    """Bytes kept between the forward and the backward pass."""
    from benchmarks import tables

    tables.memory(out, only)


@app.command()
def device(
    out: Out = Path("results"),
    only: Only = "",
    rounds: Annotated[int, typer.Option(min=2, help="Rounds of each measurement.")] = 7,
    parts: Annotated[str, typer.Option(help="Which, of these.")] = "rows,images,guard,steps,accuracy",
    small: Annotated[bool, typer.Option("--small", help="Tiny shapes: to see on a CPU that it runs.")] = False,
    minutes: Annotated[float, typer.Option(help="After so many, no case begins.")] = 8,
    show: Annotated[Path | None, typer.Option(metavar="FILE", help="Only print what a run saved, in Markdown.")] = None,
) -> None:
    """Time on this accelerator beside a copy, other libraries and PyTorch; training steps; accuracy there."""
    if show is not None:
        from benchmarks import device_tables

        print(device_tables.markdown(json.loads(show.read_text())))
        return
    # For JAX: the rest of the card is PyTorch's. Read when JAX first looks for devices.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")
    from benchmarks import device as measure

    chosen = [part.strip() for part in parts.split(",")]
    if unknown := set(chosen) - set(measure.PARTS):
        raise typer.BadParameter(f"--parts: {', '.join(sorted(unknown))}: not one of {', '.join(measure.PARTS)}")
    measure.run(out, only, rounds, chosen, small, minutes)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
