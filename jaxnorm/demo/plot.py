"""The figure: accuracy and the error of a batch's mean by batch size, and accuracy by learning rate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from jaxnorm.demo.experiment import Result
from jaxnorm.demo.model import VALUES_PER_IMAGE
from jaxnorm.demo.options import Options, label

# The palette of Okabe & Ito, told apart by colour-blind readers; the markers serve print in grey.
_STYLES = {
    "none": ("#000000", "X"),
    "batch": ("#0072B2", "o"),
    "instance": ("#D55E00", "s"),
    "layer": ("#009E73", "^"),
    "group": ("#CC79A7", "D"),
}
_BLOCKS = ("#9ECAE1", "#4292C6", "#08306B")
_RC: Any = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


def save(path: Path, options: Options, results: Sequence[Result]) -> None:
    """Draws the figure."""
    extremes = sorted({options.batch_sizes[0], options.batch_sizes[-1]})
    with mpl.rc_context(_RC):
        # No pyplot: it would choose a display.
        with_errors = [result for result in results if result.batch_errors]
        panels = 1 + bool(with_errors) + len(extremes)
        columns = 2 if panels == 4 else panels
        figure = Figure(figsize=(4.4 * columns, 3.6 * panels / columns + 0.4), layout="constrained")
        first, *others = figure.subplots(panels // columns, columns, squeeze=False).flat
        _against_batch_size(first, options, results)
        if with_errors:
            _errors(others.pop(0), options, with_errors)
        for axes, size in zip(others, extremes, strict=True):
            _against_rate(axes, options, [result for result in results if result.batch_size == size])
            axes.set_title(f"Batch size {size}, all learning rates", loc="left")
        handles, labels = first.get_legend_handles_labels()
        title = f"mean and range over {options.seeds} seeds"
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), title=title)
        figure.savefig(path, dpi=200)


def _against_batch_size(axes: Axes, options: Options, results: Sequence[Result]) -> None:
    for norm in options.norms:
        accuracies = [result.test[:, result.chosen] for result in results if result.norm == norm]
        _line(axes, norm, options.batch_sizes, np.stack(accuracies, axis=1))
    _log_axis(axes, options.batch_sizes)
    axes.set(xlabel="batch size", ylabel="test accuracy (%)")
    axes.set_title("Accuracy at the rate that validates best", loc="left")


def _errors(axes: Axes, options: Options, results: Sequence[Result]) -> None:
    blocks = zip(*(result.batch_errors for result in results), strict=True)
    for values, color, errors in zip(VALUES_PER_IMAGE, _BLOCKS, blocks, strict=True):
        axes.plot(options.batch_sizes, errors, "o-", color=color, markersize=5, label=f"{values} values per image")
        # A batch of all images is off by nothing, and a network that diverged by no number.
        if np.greater(errors, 0).any():
            axes.set_yscale("log")
    _log_axis(axes, options.batch_sizes)
    axes.set(xlabel="batch size", ylabel="off by (σ)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_title("Error of the mean of a batch, in three layers", loc="left")
    axes.legend(loc="lower left")


def _against_rate(axes: Axes, options: Options, results: Sequence[Result]) -> None:
    rates = options.rates(results[0].batch_size)
    for result in results:
        _line(axes, result.norm, rates, result.test)
    _log_axis(axes, rates)
    axes.set(xlabel="learning rate", ylabel="test accuracy (%)", ylim=(0, 102))


def _line(axes: Axes, norm: str, x: Sequence[float], accuracies: Float[np.ndarray, "seeds points"]) -> None:
    color, marker = _STYLES[norm]
    percent = 100 * accuracies
    mean = percent.mean(0)
    # Not the standard deviation: where some seeds diverge, it would reach beyond what an accuracy can be.
    spread = mean - percent.min(0), percent.max(0) - mean
    # Side by side, or the bars would hide each other.
    shift = 1.035 ** (list(_STYLES).index(norm) - len(_STYLES) // 2)
    style = {"markersize": 5, "linewidth": 1.6, "elinewidth": 1, "label": label(norm)}
    axes.errorbar(shift * np.asarray(x), mean, spread, color=color, marker=marker, **style)


def _log_axis(axes: Axes, ticks: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}" if value < 100 else f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
