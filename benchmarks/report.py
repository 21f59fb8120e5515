"""Tables on the terminal, numbers as JSON, charts as PNG."""

import datetime
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

_PACKAGES = ("jaxnorm", "jax", "jaxlib", "flax", "dm-haiku", "equinox", "torch", "libtpu")


def _installed(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment():
    """When, where and with what."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{package: found for package in _PACKAGES if (found := _installed(package))},
    }


def where():
    """The environment in a line."""
    found = environment()
    packages = ", ".join(f"{name} {value}" for name, value in found.items() if name not in ("date", "machine"))
    return f"{found['date']}; {found['machine']}; {packages}"


def show(console, title, note, columns, rows):
    """A table, with what it shows and in which environment."""
    console.print(f"\n[bold]{title}[/bold]\n{note}", highlight=False)
    console.print(where() + "\n", highlight=False, style="dim")
    console.print(table(columns, rows))


def table(columns, rows):
    """A table of text; the first column is text, the others are numbers."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        made.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        made.add_row(*map(str, row))
    return made


def markdown(columns, rows):
    """The same for a README."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def save(folder, name, title, note, columns, rows, data):
    """`name.json`, and `name.md` to be read."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": environment(), name: data}, indent=1, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text + "\n")
    page = f"## {title}\n\n{note}\n\n{where()}\n\n{markdown(columns, rows)}\n"
    (folder / f"{name}.md").write_text(page)


def console():
    """As wide as its tables."""
    return Console(width=None if os.isatty(1) else 170)


_COLORS = {"jaxnorm": "#d1495b", "flax stable": "#8d99ae", "haiku": "#6a8e7f", "equinox": "#c9a66b", "torch": "#5c5470"}


CHARTED = (
    "batch 32×56×56×64 channels last f32",
    "batch 32×56×56×64 channels last bf16",
    "group 32×56×56×64 channels last f32",
    "layer 4096×768 f32",
)
"""The cases that people have most; the table has the rest."""


def chart(path, data, title):
    """Ratios of the cases that people have most: a panel a pass, a line a case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    data = [row for row in data if row["case"] in CHARTED] or data
    names = [row["case"].replace(" channels last", "") for row in data]
    figure, axes = plt.subplots(1, 2, figsize=(10, 1.4 + 0.4 * len(names)), sharey=True, layout="constrained")
    for axis, which, words in zip(axes, ("forward", "both"), ("forward", "forward + backward"), strict=True):
        for i, row in enumerate(data):
            found = row[which]["ratios"]
            others = [(name, v) for name, v in found.items() if name in _COLORS]
            for name, v in others:
                ours = name == "jaxnorm"
                axis.plot(v, i, "o" if ours else "|", color=_COLORS[name], markersize=7 if ours else 10,
                          markeredgewidth=2.5, label=name, zorder=3 if ours else 2)  # fmt: skip
            axis.plot(row[which]["spread"], [i, i], color=_COLORS["jaxnorm"], linewidth=2.5, zorder=2)
        axis.axvline(1, color="black", linewidth=1)
        axis.set(
            xscale="log", xlabel="time over that of Flax's fast formula", title=words, ylim=(len(names) - 0.5, -0.5)
        )
        axis.set_xticks([0.1, 0.25, 0.5, 1, 2, 4, 8], ["0.1", "0.25", "0.5", "1", "2", "4", "8"])
        axis.set_xlim(0.05, 9)
        axis.minorticks_off()
        axis.grid(axis="x", color="#dddddd")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(names)), names, fontsize=9)
    figure.suptitle(
        f"{title}  ({environment()['machine']}, jax {environment()['jax']}, {environment()['date']})", fontsize=10
    )
    handles = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
