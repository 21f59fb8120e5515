"""What an accelerator is timed with: programs compiled in threads, and runs that are enqueued between two waits."""

import itertools
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import jax

from benchmarks import libraries
from benchmarks.speed import with_vjp
from benchmarks.timing import Times

COPY = "copy"
"""x + 1, which reads and writes x once: its bandwidth is what the others are measured by."""

ROWS = ("layer", "rms")

_SLICE, _LEAST = 0.01, 5
"""Seconds, and calls, that a contestant runs before the next one's turn."""

_THREADS = 12


@dataclass(frozen=True)
class Contestant:
    """A function that enqueues a call and gives its result, and one that waits for such a result."""

    run: Callable
    wait: Callable

    def seconds(self, calls):
        """Seconds per call of calls that are enqueued one after another; of the results, the last alone is kept."""
        result, started = None, time.perf_counter()
        for _ in range(calls):
            result = None
            result = self.run()
        self.wait(result)
        return (time.perf_counter() - started) / calls


def race(contestants, rounds):
    """Times of the contestants, interleaved in random order, and the exceptions of those that failed."""
    seconds, calls, errors, order = {}, {}, {}, random.Random(0)

    def attempt(name, calls):
        try:
            return contestants[name].seconds(calls)
        except Exception as error:
            errors[name] = error
            seconds.pop(name, None)
            return None

    for name in contestants:
        if attempt(name, 2) is not None and (once := attempt(name, 3)) is not None:
            calls[name], seconds[name] = max(_LEAST, round(_SLICE / once)), []
    for _ in range(rounds):
        for name in order.sample(list(seconds), len(seconds)):
            if (found := attempt(name, calls[name])) is not None:
                seconds[name].append(found)
    return Times(seconds), errors


def builders(case):
    """Of the libraries of JAX by name, as in `benchmarks.libraries`; those of jaxnorm by implementation, too."""
    ours = {"jaxnorm": libraries.ours}
    if case.kind in ROWS:
        names = libraries.implementations()
        ours = {
            f"jaxnorm {name}" if name else "jaxnorm": partial(libraries.rows, implementation=name) for name in names
        }
    others = {
        "flax fast": libraries.flax,
        "flax stable": partial(libraries.flax, fast=False),
        "standardize": libraries.standardize,
    }
    return ours | others | ({"equinox": libraries.equinox} if find_spec("equinox") else {})


@dataclass(frozen=True)
class Program:
    """A compiled program and the text that it was compiled from."""

    compiled: Callable
    text: str


def _program(build, case, both):
    """A program; None where the library has no such norm; or what went wrong."""
    try:
        if (apply := build(case)) is None:
            return None
        g, args = jax.eval_shape(case.data)
        lowered = jax.jit(with_vjp(apply)).lower(g, *args) if both else jax.jit(apply).lower(*args)
        return Program(lowered.compile(), lowered.as_text())
    except Exception as error:
        return error


def pool():
    """XLA compiles outside of Python's lock: many programs at once."""
    return ThreadPoolExecutor(_THREADS)


def programs(workers, cases, only=None):
    """Futures of all programs of the cases, by case, and by pass (whether it is both) and name."""
    table = {}
    for case in cases:
        chosen = {name: build for name, build in builders(case).items() if only is None or name in only}
        jobs = table[case] = {}
        for both in (False, True):
            jobs[both, COPY] = workers.submit(_program, lambda case: lambda x, *_: x + 1, case, False)
            for name, build in chosen.items():
                jobs[both, name] = workers.submit(_program, build, case, both)
    return table


def sort(jobs, both):
    """Programs of a pass by name, what equals "jaxnorm", and exceptions, once they are compiled."""
    found = {name: job.result() for (which, name), job in jobs.items() if which == both}
    errors = {name: v for name, v in found.items() if isinstance(v, Exception)}
    done = {name: v for name, v in found.items() if isinstance(v, Program)}
    ours = done.get("jaxnorm")
    same = [name for name, v in done.items() if name.startswith("jaxnorm ") and ours and v.text == ours.text]
    return {name: v.compiled for name, v in done.items() if name not in same}, same, errors


def running(compiled, sets):
    """A compiled program over sets of arguments in turn."""
    turn = itertools.cycle(sets)
    return Contestant(lambda: compiled(*next(turn)), jax.block_until_ready)
