"""Results of `jn.inspect` in words, as a table and as a picture: why a network is worse in evaluation.

The table needs rich, and the picture matplotlib: `pip install './jaxnorm[inspect]'` beside a clone.
"""

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from jaxnorm._types import Inspection

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["findings", "heat_map", "table"]

Found = Mapping[str, Inspection]
_OWED, _FAR, _RATIO, _NOISE, _DEAD, _SATURATED = 0.01, 0.5, 2.0, 0.25, 1e-2, 3.0
"""Where something is worth a word: of the start; σ; of variances; σ; of y; σ of y."""


def __dir__() -> list[str]:
    return __all__


def findings(found: Found) -> dict[str, list[str]]:
    """Sentences that say what is wrong with each norm, each with a remedy; none where nothing is.

    d = |mean − μ| / σ > 1/2,    var beyond 2 σ² or σ² / 2,    start_weight > 1 %,    batch_mean_error > 1/4

    Args:
        found: `jn.Inspection` by place, of arrays (channels,), as `inspect` gives it.

    Returns:
        Sentences by place.

    Paper: Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm".

    >>> found = {"norm": jn.Inspection(*jnp.zeros((8, 3)))._replace(start_weight=jnp.full(3, 0.74), var_ratio=1.0)}
    >>> jn.inspection.findings(found)["norm"][0]
    'Running averages are 74 % their start at (0, 1): lower the momentum, use debias=True, or recalibrate.'
    """
    return {place: _findings(_arrays(stats)) for place, stats in found.items()}


def _arrays(stats: Inspection) -> Any:
    """Its numbers as arrays of NumPy, each of (channels,)."""
    # Of norms in a scan over layers, the channels of all.
    arrays: Any = (v.ravel() for v in np.broadcast_arrays(*map(np.asarray, stats)))
    return Inspection(*arrays)


def _findings(stats: Any) -> list[str]:
    sentences: list[str] = []
    if not stats.var_ratio.size:
        return sentences
    sentences += _of_the_start(stats.start_weight)
    far, ratios = stats.mean_distance > _FAR, _spread(stats.var_ratio) > _RATIO
    if (wrong := (far | ratios).mean()) > 0.05:
        sentences.append(
            f"Running statistics of {wrong:.0%} of the channels are not those of these data: the mean is up to "
            f"{_largest(stats.mean_distance):.2g} σ away, variances are {_range(stats.var_ratio)} times those found. "
            f"Recalibrate, or look for what differs between these data and those of training.".replace("%", " %")
        )
    if (noise := _median(stats.batch_mean_error)) > _NOISE:
        sentences.append(
            f"Statistics of these batches are off by {noise:.2g} σ: training saw that as noise. Use larger batches, "
            f"axis_name over devices, or a norm of each example, as GroupNorm."
        )
    dead, saturated = _dead(stats).sum(), _saturated(stats).sum()
    if dead:
        sentences.append(f"{dead} of {stats.y_std.size} channels are dead: y hardly moves, whatever comes in.")
    if saturated:
        sentences.append(f"{saturated} of {stats.y_std.size} channels are on one side of 0: a relu does nothing there.")
    if (skipped := int((stats.skipped > 0).sum())) > 0:
        sentences.append(
            f"{skipped} channels had no data, or NaN or Inf among them, in up to {_largest(stats.skipped):.0f} batches."
        )
    return sentences


def _of_the_start(weight: Float[np.ndarray, " channels"]) -> list[str]:
    """Sentences on how much running averages still owe to their start at (0, 1)."""
    if (weight == 1).all():
        return [
            "Running statistics are still at their start, (0, 1): no batch was ever added. Look for train=False in "
            "training, or for updates that were thrown away."
        ]
    if (owed := _largest(weight)) > _OWED:
        return [
            f"Running averages are {owed:.0%} their start at (0, 1): lower the momentum, use debias=True, or "
            f"recalibrate.".replace("%", " %")
        ]
    return []


def table(found: Found) -> "Table":
    """A table with a line for each norm, of the worst channel for each number, for `rich.print`.

    columns = max |mean − μ|/σ,  var/σ² from … to,  median error of a batch's mean in σ,  what is left of the start,
    and how many channels are dead, on one side of 0 (before a relu: idle), or without data

    Args:
        found: `jn.Inspection` by place, of arrays (channels,), as `inspect` gives it.

    Returns:
        A `rich.table.Table`.

    Raises:
        ModuleNotFoundError: rich is not installed.

    Paper: none.

    >>> jn.inspection.table({"norm": jn.Inspection(*jnp.zeros((8, 3)))}).row_count
    1
    """
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Column, Table

    titles = "channels", "mean, σ", "var / σ²", "batch, σ", "start", "dead", "one side", "no data"
    columns = Column("norm", overflow="fold"), *(Column(title, no_wrap=True, justify="right") for title in titles)
    made = Table(*columns, box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for place, stats in found.items():
        stats = _arrays(stats)
        numbers = _largest(stats.mean_distance), _median(stats.batch_mean_error), _largest(stats.start_weight)
        mean, noise, start = ("" if np.isnan(v) else f"{v:.2g}" for v in numbers)
        counts = _dead(stats).sum(), _saturated(stats).sum(), (stats.skipped > 0).sum()
        cells = str(stats.var_ratio.size), mean, _range(stats.var_ratio), noise, start, *map(str, counts)
        made.add_row(escape(place or "the model"), *cells)
    return made


def heat_map(found: Found, path: str | PathLike[str]) -> None:
    """Writes a picture of all channels of all norms: how far running statistics are from those of the data.

    left = |mean − μ| / σ,    right = log₂ var/σ²,    a row for each norm, its channels sorted from left to right

    Args:
        found: `jn.Inspection` by place, of arrays (channels,), as `inspect` gives it.
        path: of the PNG.

    Raises:
        ModuleNotFoundError: matplotlib is not installed. ValueError: there is nothing to draw.

    Paper: none.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "norms.png"
    >>> jn.inspection.heat_map({"norm": jn.Inspection(*jnp.ones((8, 3)))}, path)
    >>> path.read_bytes()[1:4]
    b'PNG'
    """
    from matplotlib.figure import Figure

    found = {place: values for place, values in found.items() if np.size(values.var_ratio)}
    if not found:
        raise ValueError("heat_map: nothing was found: there are no norms, or none has channels.")
    stats = [_arrays(values) for values in found.values()]
    with np.errstate(divide="ignore"):
        doublings = [np.log2(s.var_ratio) for s in stats]
    panels = {
        "running mean: σ from that of the data": ([s.mean_distance for s in stats], "magma", (0, 2)),
        "running variance: doublings from that of the data": (doublings, "RdBu", (-3, 3)),
    }
    figure = Figure(figsize=(10, 1.4 + 0.28 * len(stats)), layout="constrained")
    for axes, (title, (rows, colours, (low, high))) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        image = axes.imshow(
            np.stack([_sorted(row) for row in rows]), aspect="auto", cmap=colours, vmin=low, vmax=high,
            interpolation="nearest",
        )  # fmt: skip
        axes.set_title(title, fontsize="medium")
        axes.set(xticks=[], yticks=range(len(stats)), xlabel="channels, sorted")
        axes.set_yticklabels([place or "the model" for place in found] if axes is figure.axes[0] else [])
        axes.set_facecolor("0.8")
        figure.colorbar(image, ax=axes, extend="both" if low < 0 else "max")
    figure.savefig(path, dpi=120)


def _sorted(values: np.ndarray, width: int = 128) -> np.ndarray:
    """Values of all channels in order, as so many; what is no number comes last."""
    return np.sort(values)[np.arange(width) * len(values) // width]


def _largest(values: Any) -> float:
    return float(np.nanmax(values)) if np.any(~np.isnan(values)) else np.nan


def _median(values: Any) -> float:
    return float(np.nanmedian(values)) if np.any(~np.isnan(values)) else np.nan


def _spread(ratio: Float[np.ndarray, " channels"]) -> np.ndarray:
    """By which factor a ratio is off, either way."""
    with np.errstate(divide="ignore"):
        return np.maximum(ratio, 1 / ratio)


def _range(ratio: Any) -> str:
    if np.all(np.isnan(ratio)):
        return ""
    return f"{np.nanmin(ratio):.2g} to {np.nanmax(ratio):.2g}"


def _dead(stats: Any) -> np.ndarray:
    return stats.y_std < _DEAD


def _saturated(stats: Any) -> np.ndarray:
    return ~_dead(stats) & (abs(stats.y_mean) > _SATURATED * stats.y_std)
