"""The command line. What takes long to import waits until the arguments are known to be good."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

from jaxnorm.demo.options import FULL, QUICK, Options, writable_folder

Item = TypeVar("Item", str, int, float)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _listed(values: tuple) -> str:
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _help(what: str, name: str) -> str:
    full, quick = (_listed(v) if isinstance(v := getattr(preset, name), tuple) else v for preset in (FULL, QUICK))
    return f"{what} [default: {full}; with --quick: {quick}]"


@app.command()
def main(
    norms: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help=_help("Norms, with commas between.", "norms"), show_default=False),
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option(metavar="SIZES", help=_help("Batch sizes.", "batch_sizes"), show_default=False)
    ] = None,
    learning_rates: Annotated[
        str | None,
        typer.Option(
            metavar="RATES", help=_help("Learning rates at batch size 32.", "learning_rates"), show_default=False
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help=_help("Number of seeds.", "seeds"), show_default=False)] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help=_help("Epochs of training, the same for each batch size.", "epochs"), show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the figure and the numbers.")] = Path("results"),
    quick: Annotated[bool, typer.Option("--quick", help="A smaller experiment, within a minute.")] = False,
) -> None:
    """Batch norm or instance norm, and when?

    Trains small CNNs on scikit-learn's handwritten digits with each norm at each batch size, all seeds and learning
    rates at once under vmap. Prints tables and a conclusion, and saves a figure and the numbers.
    """
    try:
        given = {
            "norms": _parse("norms", norms, str),
            "batch_sizes": _parse("batch-sizes", batch_sizes, int),
            "learning_rates": _parse("learning-rates", learning_rates, float),
            "seeds": seeds,
            "epochs": epochs,
        }
        chosen = {name: value for name, value in given.items() if value is not None}
        options = dataclasses.replace(QUICK if quick else FULL, **chosen)
        folder = writable_folder(out)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    _run(options, folder)


def _parse(name: str, text: str | None, kind: Callable[[str], Item]) -> tuple[Item, ...] | None:
    """The items of a list with commas; None for no list."""
    if text is None:
        return None
    try:
        return tuple(kind(item.strip()) for item in text.split(",") if item.strip())
    except ValueError:
        raise ValueError(f"--{name}: {text!r} is not a list of numbers with commas between") from None


def _run(options: Options, folder: Path) -> None:
    from jaxnorm.demo import data, experiment, plot, report

    started, console = time.perf_counter(), Console()
    splits = data.load()
    report.introduce(console, options, splits)
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("compiling", total=experiment.work(options))
        results = experiment.run(
            options, splits, lambda what, amount: progress.update(task, description=what, advance=amount)
        )
    report.show(console, options, results)
    figure, numbers = folder / "norms.png", folder / "norms.json"
    plot.save(figure, options, results)
    seconds = time.perf_counter() - started
    report.save(numbers, options, results, seconds)
    console.print(f"\nSaved {figure} and {numbers} after {seconds:.0f} s.", highlight=False, soft_wrap=True)
