"""What `python -m benchmarks device` saves and prints: plain text, narrow, what matters most last; and for the docs."""

import json
import math
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version

import jax

from benchmarks import report

_SHORT = {
    "jaxnorm": "ours",
    "jaxnorm xla": "xla",
    "jaxnorm pallas": "pallas",
    "flax": "fast",
    "flax fast": "fast",
    "flax stable": "stable",
    "standardize": "stdize",
    "equinox": "eqx",
    "torch": "torch",
    "torch.compile": "compile",
}
_NOTE = """% is of the bandwidth of copy (x + 1), for the least passes over x.  = is ours.
* Worst errors in units of 2⁻²⁴ (1 + |.|)."""

_DTYPES = {"float32": "f32", "bfloat16": "bf16"}


def environment():
    """When, where, on which device and with what."""
    devices = jax.devices()
    found = report.environment() | {"device": devices[0].device_kind, "platform": devices[0].platform}
    for package in ("jax-cuda13-plugin", "triton", "optax", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | _driver()


def _driver():
    """What NVIDIA's tool says of the first card; nothing where it is missing."""
    names = ("name", "driver_version", "memory.total", "clocks.max.sm", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()[0]
    except (OSError, IndexError, subprocess.SubprocessError):
        return {}
    return {"driver": line.split(", ")[1], "card": line}


def where(found):
    """The environment in a line."""
    return ", ".join(f"{name} {value}" for name, value in found.items() if name != "card")


def slug(kind):
    """A short name of a device: "h100", "cpu", "tpu-v5e"."""
    if chip := re.search(r"\b[ahblv]\d{2,3}\b", kind.lower()):
        return chip[0]
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")


def save(path, results):
    """All numbers as JSON, in one piece: a run that is cut off leaves the file of the part before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    part.replace(path)


def _plain(columns, rows):
    """Lines of a table; the first column is text, the others are numbers."""
    lines = [columns, *rows]
    first, *widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    padded = [[line[0].ljust(first), *map(str.rjust, line[1:], widths)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _digits(v):
    """Three digits."""
    if not math.isfinite(v):
        return str(v)
    return f"{v:.{max(0, 2 - math.floor(math.log10(abs(v))))}f}" if v else "0"


def _cell(found, show):
    if not found:
        return ""
    if "same as" in found:
        return "="
    return found["error"][:9] if "error" in found else show(found)


def _percent(found):
    part = found["bandwidth"]
    return f"{100 * part:.0f}" if math.isfinite(part) else "-"


def _time(found):
    return f"{_digits(found['ms'])} {_percent(found):>2}"


def _training(found):
    return f"{_digits(found['ms'])} {(found['temporaries'] or 0) / 1e6:.0f}"


def _error(found):
    return " ".join(f"{v:.2g}" for v in found.values())


def _names(records):
    """Contestants that any record has, in the order of the columns."""
    seen = {name for record in records for name, v in record.items() if isinstance(v, dict)}
    return [name for name in _SHORT if name in seen]


def _label(record):
    kind = {"layer": "LN", "rms": "RMS"}.get(record["kind"], record["kind"])
    shape = record["shape"]
    size = str(shape[1]) if len(shape) == 2 else "×".join(map(str, shape[1:]))
    mean = f" {record['mean']:g}, running {record['expected']:g}" if "guard" in record else ""
    return f"{kind} {_DTYPES[record['dtype']]} {size}{mean}"


def _pass(records, which, title, cell=_time):
    """The table of a pass over the cases; forward with the times of the copy."""
    names = _names([record[which] for record in records])
    columns = ["", *(_SHORT[name] for name in names)]
    rows = [[_label(record), *(_cell(record[which].get(name), cell) for name in names)] for record in records]
    if which == "forward":
        columns[1:1] = ["copy"]
        for row, record in zip(rows, records, strict=True):
            row[1:1] = [_cell(record[which].get("copy"), lambda found: _digits(found["ms"]))]
    return f"{title}\n" + _plain(columns, rows)


def _times(part, records):
    yield _pass(records, "forward", f"{part}: forward, ms and % of copy's bandwidth")
    if part != "rows":
        yield _pass(records, "both", f"{part}: forward + backward, ms and %")
        return
    # The backward pass alone is a number more in the cell.
    both = [record | {"both": _joined(record)} for record in records]
    title = "rows: forward + backward, ms, %, and % of backward alone (both less forward)"
    yield _pass(both, "both", title, lambda found: f"{_time(found)} {_percent(found['backward']):>2}")


def _joined(record):
    alone = {"bandwidth": math.nan}
    return {name: v | {"backward": record["backward"].get(name, alone)} for name, v in record["both"].items()}


def _steps(records):
    names = _names(records)
    columns = ["steps: ms, MB of temporaries", *(_SHORT[name] for name in names)]
    rows = [[record["program"], *(_cell(record.get(name), _training) for name in names)] for record in records]
    yield _plain(columns, rows)


def _accuracy(found):
    """Errors of y in the table of `benchmarks.accuracy`, then those of rows."""
    hostile = {what: {name: {"y": v["y"]} for name, v in errors.items()} for what, errors in found["hostile"].items()}
    for title, table in (("batch, instance, layer, group: y*", hostile), ("rows: y, dx*", found["rows"])):
        if table:
            names = _names(table.values())
            rows = [[what, *(_cell(v.get(name), _error) for name in names)] for what, v in table.items()]
            yield _plain([title, *(_SHORT[name] for name in names)], rows)


def text(where_, results):
    """All tables. Those of rows come last: of a long output, the end is what is kept."""
    tables = [f"On {where(where_)}.\n{_NOTE}"]
    if found := results.get("accuracy"):
        tables += _accuracy(found)
    if found := results.get("steps"):
        tables += _steps(found)
    for part in ("guard", "images", "rows"):
        # A case of the guard is named by its means, too.
        if records := [record | ({"guard": True} if part == "guard" else {}) for record in results.get(part, [])]:
            tables += _times(part, records)
    tables += [f"{name}: {v['error']} {v['message'][:200]}" for name, v in results.items() if name.endswith(", failed")]
    return "\n\n".join(tables) + "\n"


# The same for docs/benchmarks.md, whose section on a GPU is this.

_PARTS = {
    "rows": (
        "Rows",
        "Percent of the bandwidth of a copy (x + 1) in the same run, for the least passes over x: forward (2) / "
        "backward alone (3); = is as jaxnorm. In bfloat16 the copy is no limit: XLA's x + 1 is slower there than in "
        "float32.",
    ),
    "images": (
        "Images, channels last",
        "The same: forward (3 passes) / backward alone (5). In caches, it exceeds 100.",
    ),
    "guard": ("Where the mean is far from 0, or the running mean is", "As for images."),
}


def _fractions(record):
    """A row of percentages, forward / backward alone, by name."""

    def cell(name):
        found = record["forward"].get(name)
        return _cell(found, lambda v: f"{_percent(v)} / {_percent(record['backward'].get(name, _UNKNOWN))}")

    return cell


_UNKNOWN = {"bandwidth": math.nan}


def _markdown(first, labels, names, cells):
    """A table without the columns of those that are ours, or nothing, all the way down."""
    columns = {name: [cell(name) for cell in cells] for name in names}
    columns = {name: found for name, found in columns.items() if set(found) - {"", "="}}
    return report.markdown([first, *columns], list(zip(labels, *columns.values(), strict=True)))


def _of_part(part, records):
    title, note = _PARTS[part]
    records = [record | ({"guard": True} if part == "guard" else {}) for record in records]
    table = _markdown(
        "% of a copy, forward / backward",
        [_label(record) for record in records],
        ["copy, GB/s", *_names([record["forward"] for record in records])],
        [lambda name, r=r: f"{r[name]:.0f}" if name == "copy, GB/s" else _fractions(r)(name) for r in records],
    )
    return f"### {title}\n\n{note}\n\n{table}"


def ranges(results):
    """Of our times over Flax's, for rows of up to 8192 features: of layer and RMS norm forward, and of both ways."""
    rows = [record for record in results["rows"] if record["shape"][1] <= 8192]

    def between(which, *kinds):
        found = [r[which]["jaxnorm"]["ms"] / r[which]["flax fast"]["ms"] for r in rows if r["kind"] in kinds]
        return f"{min(found):.2f} to {max(found):.2f}"

    return [between("forward", "layer"), between("forward", "rms"), between("both", "layer", "rms")]


def markdown(results):
    """Tables of a file that `device` saved."""
    found = results["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in found.items() if k not in ("date", "machine", "device", "card"))
    pieces = [f"{found['date']}; {found['device']}; {found['machine']}; {versions}"]
    pieces += [results["again"]] if "again" in results else []
    pieces += [_of_part(part, results[part]) for part in _PARTS if results.get(part)]
    if steps := results.get("steps"):
        cells = [lambda name, r=r: _cell(r.get(name), lambda v: _training(v).replace(" ", ", ")) for r in steps]
        labels = [record["program"] for record in steps]
        table = _markdown("ms, MB of temporaries", labels, _names(steps), cells)
        pieces.append(f"### Training steps\n\nMedians; jaxnorm alone is what None chooses.\n\n{table}")
    if rows := results.get("accuracy", {}).get("rows"):
        cells = [lambda name, v=v: _cell(v.get(name), lambda e: _error(e).replace(" ", ", ")) for v in rows.values()]
        table = _markdown("y, dx", list(rows), _names(rows.values()), cells)
        pieces.append(f"### Errors of rows\n\nThe worst, in units of 2⁻²⁴ (1 + |.|), against float64.\n\n{table}")
    return "\n\n".join(pieces) + "\n"
