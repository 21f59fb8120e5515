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


def heading(console, title, note):
    """What the next table shows, and in which environment."""
    where = ", ".join(f"{name} {value}" for name, value in environment().items() if name not in ("date", "machine"))
    console.print(f"\n[bold]{title}[/bold]\n{note}", highlight=False)
    console.print(f"{environment()['date']}; {environment()['machine']}; {where}\n", highlight=False, style="dim")


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


def save(folder, name, columns, rows, data):
    """`name.json` and `name.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": environment(), name: data}, indent=1, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text + "\n")
    (folder / f"{name}.md").write_text(markdown(columns, rows) + "\n")


def console():
    """As wide as its tables."""
    return Console(width=None if os.isatty(1) else 170)
