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
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from jaxnorm.demo import analysis
from jaxnorm.demo.data import Splits
from jaxnorm.demo.experiment import Result
from jaxnorm.demo.model import VALUES_PER_IMAGE
from jaxnorm.demo.options import NORMS, Options, label

_PACKAGES = ("jaxnorm", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")


def introduce(console: Console, options: Options, splits: Splits) -> None:
    """Says what is about to be run."""
    train, validation, test = (len(part.labels) for part in splits)
    console.print(
        f"[bold]Batch norm or instance norm, and when?[/bold] {options.runs} small CNNs on real handwritten digits: "
        f"{len(options.norms)} norms at {len(options.batch_sizes)} batch sizes with {options.seeds} seeds and "
        f"{len(options.learning_rates)} learning rates; {train} images to train on, {validation} to choose the "
        f"learning rate on, {test} to test on. SGD with momentum and cosine decay. Each run sees all images "
        f"{options.epochs} times, whatever its batch size; learning rates are in proportion to the batch size."
    )


def show(console: Console, options: Options, results: Sequence[Result]) -> None:
    """Prints the tables, the check of deployment and the conclusion."""
    reached, trains = f"{analysis.TARGET:.0%}", f"{analysis.TRAINS:.0%}"
    tables: dict[str, Callable[[Result], str]] = {
        "Test accuracy in %, mean ± standard deviation over seeds, at the learning rate that validates best": (
            lambda result: f"{analysis.score(result)}"
        ),
        "That learning rate": lambda result: f"{options.rates(result.batch_size)[result.chosen]:.2g}",
        f"Images until {reached} validation accuracy at that learning rate, median over seeds": (
            lambda result: _number(_finite(analysis.images_to_target(result, options)), "never")
        ),
        f"The largest learning rate that still trains: mean test accuracy of {trains} or more": (
            lambda result: _number(analysis.largest_rate(result, options), "none")
        ),
    }
    for title, cell in tables.items():
        _print_table(console, title, options, _by_norm(options, results, cell))
    if errors := _by_block(results):
        title = "How far the mean of a batch is from that of all training images, in σ, in networks with batch norm"
        _print_table(console, title, options, errors)
    difference = max(result.batch_dependence for result in results)
    console.print(
        f"\nIn deployment: images predicted one at a time get the logits that they get in a batch, to within "
        f"{difference:.0e} of the largest logit, for every norm and batch size.",
        highlight=False,
    )
    console.print(f"\n[bold]Conclusion.[/bold] {analysis.conclusion(results)}", highlight=False)
    console.print(
        "Differences count if they exceed their spread: the root of the sum of both variances over the seeds.",
        style="dim",
    )


def save(path: Path, options: Options, results: Sequence[Result], seconds: float) -> None:
    """Writes the options, all accuracies, what was made of them, and the versions."""
    content = {
        "options": dataclasses.asdict(options),
        "norms": {name: repr(NORMS[name]) for name in options.norms},
        "results": [_entry(options, result) for result in results],
        "conclusion": analysis.conclusion(results),
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "device": jax.devices()[0].device_kind,
    }
    path.write_text(json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def _entry(options: Options, result: Result) -> dict[str, Any]:
    mean, std = analysis.score(result)
    return {
        "norm": result.norm,
        "batch_size": result.batch_size,
        "learning_rate": options.rates(result.batch_size)[result.chosen],
        "evaluated_at": options.evaluated_at(result.batch_size),
        "test_accuracy": {"mean": mean, "std": std},
        "images_to_target": _finite(analysis.images_to_target(result, options)),
        "largest_learning_rate": analysis.largest_rate(result, options),
        "batch_errors": [_finite(error) for error in result.batch_errors],
        "batch_dependence": result.batch_dependence,
        "test": result.test.tolist(),
        "validation": result.validation.tolist(),
    }


Rows = dict[str, list[str]]


def _by_norm(options: Options, results: Sequence[Result], cell: Callable[[Result], str]) -> Rows:
    cells = {(result.norm, result.batch_size): cell(result) for result in results}
    return {label(norm): [cells[norm, size] for size in options.batch_sizes] for norm in options.norms}


def _by_block(results: Sequence[Result]) -> Rows:
    blocks = zip(*(result.batch_errors for result in results if result.batch_errors), strict=True)
    return {
        f"block {i}, {values} values": [f"{error:.2f}" for error in errors]
        for i, (values, errors) in enumerate(zip(VALUES_PER_IMAGE, blocks, strict=False), 1)
    }


def _print_table(console: Console, title: str, options: Options, rows: Rows) -> None:
    """Rows down, batch sizes across."""
    console.print(f"\n[bold]{title}[/bold]", highlight=False)
    table = Table(
        Column("batch size", no_wrap=True),
        *(Column(str(size), justify="right") for size in options.batch_sizes),
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:g}"
