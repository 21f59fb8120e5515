"""The commands: measure, with a progress bar; print; save."""

from contextlib import contextmanager

import jax.numpy as jnp
from rich.progress import Progress, TimeElapsedColumn

from benchmarks import report
from benchmarks.cases import CASES


@contextmanager
def _progress(console, total):
    """A function to call with a few words after each of so many measurements."""
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("measuring", total=total)
        yield lambda what: bar.update(task, description=what, advance=1)


def _number(v, digits=2, scale=1):
    return "" if v is None else f"{v * scale:.{digits}f}"


def _count(program):
    """Collectives, and those within a conditional."""
    some = program["conditional_collectives"]
    return f"{program['collectives']} (+{some})" if some else f"{program['collectives']}"


def _chosen(only):
    return [case for case in CASES if only in case.name]


def _show(console, out, name, title, note, columns, rows, data):
    report.show(console, title, note, columns, rows)
    report.save(out, name, title, note, columns, rows, data)
    console.print(f"Saved {out / name}.json and .md", highlight=False)


def speed(out, only, rounds, malloc):
    """Times of all cases, as ratios, and a chart of them."""
    from benchmarks import speed as measure

    console, rows, data = report.console(), [], []
    cases = _chosen(only)
    with _progress(console, len(cases)) as done:
        for case in cases:
            row = measure.measure(case, rounds)
            data.append(_times(row))
            rows += _lines(data[-1])
            done(case.name)
    columns = ["case", "pass", "flax, ms", "jaxnorm", "[quartiles]", *measure.OTHERS, measure.FLOOR]
    note = (
        f"Ratios of medians over {rounds} interleaved rounds to Flax with its default variance (Haiku where marked *). "
        "Quartiles are of the\nratios within a round. The floor is x + 1, and x + g besides."
    )
    title, chart = f"Time over that of Flax, {malloc} malloc", out / f"speed-{malloc}.png"
    _show(console, out, f"speed-{malloc}", title, note, columns, rows, data)
    report.chart(chart, data, title)
    console.print(f"Saved {chart}", highlight=False)


def _times(row):
    """A row as plain numbers."""
    passes = {}
    for name, times, goal in zip(
        ("forward", "both"), (row.forward, row.both), row.case.most or (None, None), strict=True
    ):
        ratios = {library: times.ratio(library, row.base) for library in times.seconds}
        spread = times.spread("jaxnorm", row.base)
        passes[name] = {"ms": 1e3 * times.median(row.base), "goal": goal, "ratios": ratios, "spread": spread}
    return {"case": row.case.name, "base": row.base, **passes}


def _lines(row):
    """Its two lines in the table."""
    from benchmarks.speed import FLOOR, OTHERS

    star = "" if row["base"] == "flax" else "*"
    for name, words in (("forward", "forward"), ("both", "+ backward")):
        found = row[name]
        low, high = found["spread"]
        yield [
            row["case"] if name == "forward" else "",
            words,
            f"{found['ms']:.2f}{star}",
            _number(found["ratios"]["jaxnorm"]),
            f"[{low:.2f}, {high:.2f}]",
            *(_number(found["ratios"].get(library)) for library in (*OTHERS, FLOOR)),
        ]


def step(out, rounds):
    """Whole programs."""
    from benchmarks import step as measure

    console = report.console()
    with _progress(console, 3) as done:
        found = {}
        for dtype in ("float32", "bfloat16"):
            times, costs = measure.resnet(jnp.dtype(dtype), rounds)
            for name, cost in costs.items():
                found[f"ResNet-18, batch {measure.BATCH}, {dtype}", name] = {
                    "seconds": times.median(name),
                    "spread": times.spread(name, "flax"),
                    **cost,
                }
            done(f"ResNet-18 {dtype}")
        grid = measure.grid(rounds)
        for name in grid.seconds:
            found[f"{measure.GRID} batch norms", name] = {
                "seconds": grid.median(name), "spread": grid.spread(name, "Python loop"),
            }  # fmt: skip
        done("grid")
    rows = [
        [
            what,
            name,
            _number(v.get("seconds"), 1, 1e3),
            "[{:.2f}, {:.2f}]".format(*v["spread"]) if "spread" in v else "",
            _number(v.get("temporaries"), 0, 1e-6),
            _number(v.get("tracing")),
            _number(v.get("compiling")),
        ]
        for (what, name), v in found.items()
    ]
    columns = ["program", "with", "ms", "[quartiles]", "temporaries, MB", "tracing, s", "compiling, s"]
    note = "Quartiles of the ratio to Flax's fast formula, or to the Python loop, within a round."
    data = [{"program": what, "with": name, **v} for (what, name), v in found.items()]
    _show(console, out, "step", "Whole programs", note, columns, rows, data)


def compiling(out, targets, rounds):
    """What it takes to get a program."""
    from benchmarks import compiling as measure

    console, found = report.console(), {}
    with _progress(console, len(targets) * len(measure.NORMS)) as done:
        for target in targets:
            for kind in measure.NORMS:
                found[kind, target] = measure.compare(kind, target, rounds)
                done(f"{kind} for {target}")
    rows = []
    for (kind, target), costs in found.items():
        ours, flax = costs["jaxnorm"], costs["flax"]
        all_ours, all_flax = (sum(cost[stage] for stage in measure.STAGES) for cost in (ours, flax))
        ratios = [ours[name] / flax[name] for name in (*measure.STAGES, "instructions")]
        rows.append([kind, target, *map(_number, (all_flax, all_ours, all_ours / all_flax, *ratios))])
    columns = ["norm", "for", "flax, s", "jaxnorm, s", "ratio", *measure.STAGES, "instructions"]
    note = (
        f"The gradient of {measure.DEPTH} norms with a product of {measure.FEATURES} features before each. Seconds for "
        "all stages,\nand of jaxnorm over Flax: these, each stage, and instructions of the lowered program, which are "
        "exact. The least of\ninterleaved rounds."
    )
    data = [{"norm": kind, "target": target, **costs} for (kind, target), costs in found.items()]
    _show(console, out, "compiling", "Time to compile", note, columns, rows, data)


def compiled(out):
    """Programs for accelerators."""
    from benchmarks import compiled as measure

    console = report.console()
    with _progress(console, sum(1 for _ in measure.programs())) as done:
        records = measure.measure(done)
    rows = {}
    for r in records:
        forward, both = r["forward"], r["both"]
        cell = f"{forward['units']:.2f} / {both['units']:.2f}"
        if r["table"] == "collectives":
            cell += f"; {_count(forward)} / {_count(both)}, {both['collective_bytes']} B"
        rows.setdefault((r["table"], r["target"], r["what"]), {})[r["library"]] = cell
    lines = [
        [what, target, *(cells.get(name, "") for name in measure.NAMES)]
        for (_, target, what), cells in sorted(rows.items())
    ]
    columns = ["program", "target", *measure.NAMES]
    note = (
        "Passes over x to and from device memory, forward / with backward. For the batch over devices, 64 examples on "
        "each: passes of a device, collectives (+ those within a conditional) and their bytes.\nThese are compiled "
        "programs, counted; nothing was run on a device, and they are no timings."
    )
    _show(console, out, "compiled", "Programs for TPU and GPU", note, columns, lines, records)


def accuracy(out):
    """Errors on hostile inputs."""
    from benchmarks import accuracy as measure

    console, rows, data = report.console(), [], {}
    names = list(measure.hostile((1, 1, 1, 1)))
    with _progress(console, len(names)) as done:
        for name in names:
            data[name] = measure.measure(name)
            done(name)
    libraries = list(data[names[0]])
    for what in ("y", "mean", "variance"):
        for name in names:
            values = [data[name][library][what] for library in libraries]
            rows.append([f"{what}, {name}", *(f"{v:.2g}" if v < 100 else f"{v:.0e}" for v in values)])
    note = (
        "Worst errors in units of 2⁻²⁴: of y relative to 1 + |y|, over batch, instance, layer and group norm; of the "
        "running variance relative to itself, of the running mean relative to the standard deviation (float32 numbers "
        "near 1e6 lie 1e6 units apart)."
    )
    _show(console, out, "accuracy", "Errors on hostile inputs", note, ["of", *libraries], rows, data)


def memory(out, only):
    """What is kept for the backward pass."""
    from benchmarks import memory as measure

    console, data = report.console(), {}
    cases = _chosen(only)
    with _progress(console, len(cases)) as done:
        for case in cases:
            data[case.name] = measure.measure(case)
            done(case.name)
    libraries = list(data[cases[0].name])
    rows = [[name, *(_number(found[library], 3) for library in libraries)] for name, found in data.items()]
    note = "Bytes kept between the forward and the backward pass, over the bytes of x."
    _show(console, out, "memory", "Memory for the backward pass", note, ["case", *libraries], rows, data)


def family(out, only, rounds):
    """The wider family beside the same formulas by hand."""
    from benchmarks import family as measure

    console, data = report.console(), []
    names = [name for name in measure.FAMILY if only in name]
    with _progress(console, len(names)) as done:
        for name in names:
            data.append(measure.measure(name, rounds))
            done(name)
    columns = ["norm", "pass", "by hand, ms", "jaxnorm", "[quartiles]", "kept, jaxnorm", "kept, by hand"]
    rows = []
    for row in data:
        for what in ("forward", "both"):
            low, high = row[what]["quartiles"]
            memory = [_number(row["kept"][key]) if what == "both" else "" for key in ("jaxnorm", "by hand")]
            times = [_number(row[what]["by hand"], 1, 1e3), _number(row[what]["ratio"]), f"[{low:.2f}, {high:.2f}]"]
            rows.append([row["name"] if what == "forward" else "", what, *times, *memory])
    note = (
        f"x has shape {'×'.join(map(str, measure.SHAPE))}, float32. Ratios of medians over {rounds} interleaved rounds "
        "to the same formula\nwritten by hand in jax.numpy, in float32 and without masks. Kept: bytes for the backward "
        "pass over those of x,\nin bfloat16."
    )
    _show(console, out, "family", "The wider family beside formulas by hand", note, columns, rows, data)
