"""The tables on the terminal, and the numbers as JSON."""

import dataclasses
import json
import math
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jaxnorm.demo import analysis
from jaxnorm.demo.data import Splits
from jaxnorm.demo.experiment import Result
from jaxnorm.demo.options import Options

_PACKAGES = ("jaxnorm", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")


def introduce(console: Console, options: Options, splits: Splits) -> None:
    """Says what is about to be run."""
    train, validation, test = (len(part.labels) for part in splits)
    console.print(
        f"[bold]Batch norm or instance norm, and when?[/bold] {options.runs} small CNNs on real handwritten digits: "
        f"{len(options.norms)} norms at {len(options.batch_sizes)} batch sizes with {options.seeds} seeds and "
        f"{len(options.learning_rates)} learning rates; {train} images to train on, {validation} to choose the "
        f"learning rate on, {test} to test on. SGD with momentum and cosine decay. Each run takes {options.steps} "
        f"gradient steps whatever its batch size: with twice the batch it sees twice as many images."
    )


def show(console: Console, options: Options, results: Sequence[Result]) -> None:
    """Prints the tables, the check of deployment and the conclusion."""
    reached, trains = f"{analysis.TARGET:.0%}", f"{analysis.TRAINS:.0%}"
    rows = [
        ("Test accuracy in %", "mean ± standard deviation over seeds", lambda r: str(analysis.score(r))),
        ("Learning rate", "the one that validates best, used above", lambda r: f"{options.learning_rates[r.chosen]:g}"),
        (
            f"Steps to {reached}",
            "validation accuracy, median over seeds",
            lambda r: _number(_finite(analysis.steps_to_target(r, options)), f"> {options.steps}"),
        ),
        (
            "Largest learning rate that trains",
            f"mean test accuracy of {trains} or more",
            lambda r: _number(analysis.largest_rate(r, options), "none"),
        ),
    ]
    for title, caption, cell in rows:
        console.print(_table(title, caption, options, results, cell))
    difference = max(result.batch_dependence for result in results)
    console.print(
        f"Deployment: images predicted one at a time and in a batch give the same logits, to {difference:.0e} of the "
        f"largest, for every norm and batch size.\n"
    )
    console.print(f"[bold]Conclusion.[/bold] {analysis.conclusion(results)}", highlight=False)
    console.print(_spread(options), style="dim")


def save(path: Path, options: Options, results: Sequence[Result], seconds: float) -> None:
    """Writes the options, all accuracies, what was made of them, and the versions."""
    content = {
        "options": dataclasses.asdict(options),
        "evaluated_at": options.evaluated_at,
        "results": [_entry(options, result) for result in results],
        "conclusion": analysis.conclusion(results),
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "device": jax.devices()[0].device_kind,
    }
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def _entry(options: Options, result: Result) -> dict[str, Any]:
    mean, std = analysis.score(result)
    return {
        "norm": result.norm,
        "batch_size": result.batch_size,
        "learning_rate": options.learning_rates[result.chosen],
        "test_accuracy": {"mean": mean, "std": std},
        "steps_to_target": _finite(analysis.steps_to_target(result, options)),
        "largest_learning_rate": analysis.largest_rate(result, options),
        "batch_dependence": result.batch_dependence,
        "test": result.test.tolist(),
        "validation": result.validation.tolist(),
    }


def _table(
    title: str, caption: str, options: Options, results: Sequence[Result], cell: Callable[[Result], str]
) -> Table:
    """Norms down, batch sizes across."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("norm")
    for size in options.batch_sizes:
        table.add_column(f"batch {size}", justify="right")
    cells = {(result.norm, result.batch_size): cell(result) for result in results}
    for norm in options.norms:
        table.add_row(norm, *(cells[norm, size] for size in options.batch_sizes))
    return table


def _spread(options: Options) -> str:
    if options.seeds == 1:
        return "One seed has no spread: every difference above may be chance."
    return (
        f"A difference counts as clear if it exceeds its spread: the root of the summed variances over the "
        f"{options.seeds} seeds."
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:g}"
