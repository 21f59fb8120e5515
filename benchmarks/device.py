"""Norms timed on an accelerator, beside other libraries, as fractions of the bandwidth of a copy."""

import math
import time
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import device_programs, device_tables, device_torch
from benchmarks.cases import Case
from benchmarks.contestants import COPY, ROWS, pool, programs, race, running, sort

PARTS = ("rows", "images", "guard", "steps", "accuracy")

_FEATURES = (1024, 2048, 4096, 8192, 16384, 768)
_BYTES = 256 * 2**20
"""Those of x, for rows."""

_LATEST = {"rows": 0.8, "images": 0.8, "guard": 0.9, "steps": 0.75, "accuracy": 0.9}
"""A part that has to begin later, as a part of the time that there is, is left out: what it compiles takes long."""

_BEYOND_CACHES = 192 * 2**20
"""Calls in turn read arrays of so many bytes together: an H200 keeps 60 MB in its cache."""

_PASSES = {"rows": {"forward": 2, "both": 5, "backward": 3}, "images": {"forward": 3, "both": 8, "backward": 5}}
"""The least times that an operation moves x. Statistics over all of an image's positions are a pass of their own."""


def _rows(small):
    for kind in ROWS:
        for dtype in ("float32", "bfloat16"):
            for features in (1024, 768) if small else _FEATURES:
                # A multiple of 128 rows: no contestant is to be slow for a reason that is not its features.
                count = (2**18 if small else _BYTES) // (features * jnp.dtype(dtype).itemsize) // 128 * 128
                yield Case(kind, (max(count, 64), features), dtype)


def _images(small):
    for kind in ("batch", "instance", "group"):
        for dtype in ("float32", "bfloat16"):
            for shape in [(8, 8, 8, 64)] if small else [(256, 56, 56, 64), (256, 14, 14, 256)]:
                yield Case(kind, shape, dtype)


def _guard(small):
    """Data where a look about the running mean does, at 0 and at 30, and where it doesn't."""
    for dtype in ("float32", "bfloat16"):
        for mean, expected in ((0, 0), (30, 30), (30, 0)):
            yield Case("batch", (8, 8, 8, 64) if small else (256, 56, 56, 64), dtype, mean=mean, expected=expected)


_CASES = {"rows": _rows, "images": _images, "guard": _guard}


@dataclass(frozen=True)
class Clock:
    """Minutes that a run may take: what would begin later is left out."""

    minutes: float
    started: float = field(default_factory=time.monotonic)

    def spent(self):
        """The part that has gone, from 0 to 1."""
        return (time.monotonic() - self.started) / 60 / self.minutes

    def say(self, text):
        """A line of progress."""
        print(f"[{time.monotonic() - self.started:4.0f} s] {text}", flush=True)


def _warm(cases, clock):
    """PyTorch's functions for each case, and what failed; those that there is no time to compile are left out."""
    functions, errors = {}, {}
    # Until then at the latest: what remains is for the measurements.
    until = clock.spent() + 0.5 * (1 - clock.spent())
    for case in cases:
        functions[case] = device_torch.norms(case)
        if clock.spent() > until:
            functions[case].pop("torch.compile", None)
        if functions[case]:
            errors[case] = device_torch.warm(case, functions[case])
            device_torch.free()
    return functions, errors


def times(part, cases, rounds, clock, beside=None):
    """Records of the cases, one after another, each as soon as it is measured; `beside`: these alone."""
    with pool() as workers:
        jobs = programs(workers, cases, beside)
        clock.say(f"{part}: {sum(map(len, jobs.values()))} programs")
        # Meanwhile, in this thread: PyTorch's compiler is for one thread.
        functions, errors = _warm(() if beside else cases, clock)
        if functions := {case: f for case, f in functions.items() if f}:
            clock.say(f"{part}: PyTorch is compiled")
    clock.say(f"{part}: compiled")
    for case in cases:
        if clock.spent() > 1:
            clock.say(f"{part}: no time for {case.name} and what follows")
            return
        try:
            record = _measure(part, case, jobs[case], functions.get(case, {}), errors.get(case, {}), rounds)
        except Exception as error:
            # Not of a contestant: no memory for the data, say. The next case may have it.
            clock.say(f"{case.name}: {error!r}"[:500])
            continue
        yield record
        clock.say(case.name)


def _measure(part, case, jobs, functions, failed, rounds):
    """A record: milliseconds, quartiles and fractions of the copy's bandwidth, by pass and name."""
    count = min(8, math.ceil(_BEYOND_CACHES / case.bytes))
    sets = jax.block_until_ready([case.data(seed) for seed in range(count)])
    tensors = device_torch.data(case, count) if functions else []
    functions = {name: f for name, f in functions.items() if name not in failed}
    passes = _PASSES["rows" if case.kind in ROWS else "images"]
    record = {"case": case.name, "kind": case.kind, "shape": case.shape, "dtype": case.dtype, "bytes": case.bytes}
    record |= {"mean": case.mean, "expected": case.expected}
    for both, name in ((False, "forward"), (True, "both")):
        found, same, errors = sort(jobs, both)
        arguments = {False: [args for _, args in sets], True: [(g, *args) for g, args in sets]}
        runs = {who: running(program, arguments[both and who != COPY]) for who, program in found.items()}
        seconds, broken = race(runs | device_torch.contestants(functions, tensors, both), rounds)
        record[name] = _numbers(seconds, passes[name])
        record[name] |= {who: {"same as": "jaxnorm"} for who in same}
        record[name] |= {who: failure(error) for who, error in (errors | failed | broken).items()}
        del runs
    if "ms" in record["forward"].get(COPY, {}):
        record["copy, GB/s"] = 2e-6 * case.bytes / record["forward"][COPY]["ms"]
    record["backward"] = _backward(record, passes["backward"])
    del sets, tensors
    device_torch.free()
    return record


def failure(error):
    """An exception as numbers' place has it."""
    return {"error": type(error).__name__, "message": str(error)[:2000]}


def _numbers(times, passes):
    copy = times.median(COPY) if COPY in times.seconds else math.nan
    table = {}
    for name, seconds in times.seconds.items():
        low, high = np.quantile(seconds, (0.25, 0.75))
        moved = 2 if name == COPY else passes
        bandwidth = moved / 2 * copy / times.median(name)
        table[name] = {"ms": 1e3 * times.median(name), "quartiles": [1e3 * low, 1e3 * high], "bandwidth": bandwidth}
    return table


def _backward(record, passes):
    """The backward pass alone: both less forward."""
    forward, both = record["forward"], record["both"]
    table = {}
    for name, found in both.items():
        if name != COPY and "ms" in found and "ms" in forward.get(name, {}):
            ms = found["ms"] - forward[name]["ms"]
            copy = both[COPY]["ms"] if COPY in both and "ms" in both[COPY] else math.nan
            table[name] = {"ms": ms, "bandwidth": passes / 2 * copy / ms if ms > 0 else math.nan}
    return table


def run(out, only, rounds, parts, small, minutes):
    """All parts; what is known is saved after each, and printed last."""
    clock, results = Clock(minutes), {}
    where = device_tables.environment()
    path = out / f"device-{device_tables.slug(jax.devices()[0].device_kind)}.json"
    options = {"only": only, "rounds": rounds, "parts": list(parts), "small": small}
    clock.say(device_tables.where(where))
    for part in parts:
        if clock.spent() > _LATEST[part]:
            clock.say(f"{part}: no time")
            continue
        try:
            if part in _CASES:
                cases = [case for case in _CASES[part](small) if only in case.name]
                beside = ("jaxnorm", "flax fast") if part == "guard" else None
                results[part] = []
                # As they come: what is measured before an exception stays.
                for record in times(part, cases, rounds, clock, beside):
                    results[part].append(record)
            else:
                measure = {"steps": device_programs.steps, "accuracy": device_programs.accuracy}[part]
                results[part] = measure(only, rounds, small, clock)
        except Exception as error:
            clock.say(f"{part}: {error!r}")
            results[f"{part}, failed"] = failure(error)
        device_tables.save(path, {"environment": where, "options": options, **results})
    text = device_tables.text(where, results)
    path.with_suffix(".txt").write_text(text)
    clock.say(f"saved {path} and .txt")
    print(text)
