"""Whole programs on an accelerator, and how accurate norms are there."""

from functools import partial
from inspect import signature

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxnorm as jn
from benchmarks import accuracy as hostile
from benchmarks import device_torch
from benchmarks.cases import Case
from benchmarks.contestants import ROWS, builders, pool, race, running
from benchmarks.networks import LinenTransformer
from benchmarks.speed import with_vjp
from benchmarks.step import BATCH_NORMS, training

_BLOCKS = 4


class _Transformer(nn.Module):
    """Pre-norm blocks: nothing comes after attention and feed-forward."""

    norm: type

    @nn.compact
    def __call__(self, x):
        for _ in range(_BLOCKS):
            x = LinenTransformer(self.norm, lambda: lambda y: y)(x)
        return x


def _row_norms(kind):
    """Layers by library: norms of rows in bfloat16."""
    ours, flax = getattr(jn.linen, kind), getattr(nn, kind)
    table = {"jaxnorm": partial(ours, dtype=jnp.bfloat16)}
    spec = getattr(jn, kind)
    if "implementation" in signature(spec).parameters:
        for name in ("xla", "pallas"):
            table[f"jaxnorm {name}"] = partial(jn.linen.Norm, spec(implementation=name), train=True)
    fast = {"flax": True, "flax stable": False}
    return table | {name: partial(flax, use_fast_variance=v, dtype=jnp.bfloat16) for name, v in fast.items()}


def _blocks(norm, shape):
    """A training step of a stack of blocks on random activations in bfloat16, and its arguments."""
    model, optimizer = _Transformer(norm), optax.sgd(0.1)
    x = jax.random.normal(jax.random.key(0), shape, jnp.bfloat16)
    params = jax.jit(model.init)(jax.random.key(1), x)

    def step(params, state, x):
        def loss(params):
            return jnp.square(model.apply(params, x).astype(jnp.float32)).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    return step, (params, optimizer.init(params), x)


def _cases(small):
    """Functions that give a step and its arguments, by library, by the name of the program."""
    batch, width, shape = (8, 8, (2, 16, 64)) if small else (256, 64, (8, 1024, 1024))
    table = {}
    for dtype in ("bfloat16",) if small else ("float32", "bfloat16"):
        table[f"ResNet-18, batch {batch}, {dtype}"] = {
            name: partial(training, norm, jnp.dtype(dtype), batch, jnp.dtype(dtype), width)
            for name, norm in BATCH_NORMS.items()
        }
    for kind in ("LayerNorm", "RMSNorm"):
        name = f"{_BLOCKS} blocks, {'×'.join(map(str, shape))} bfloat16, {kind}"
        table[name] = {library: partial(_blocks, norm, shape) for library, norm in _row_norms(kind).items()}
    return table


def _compile(libraries):
    """Programs, their arguments and bytes of temporaries by library; or what went wrong.

    One after another: XLA times kernels for a program's products while it compiles it, and the next ones find them.
    """
    table = {}
    for name, make in libraries.items():
        try:
            step, args = make()
            compiled = jax.jit(step).lower(*args).compile()
            memory = compiled.memory_analysis()
            table[name] = compiled, args, memory.temp_size_in_bytes if memory else None
        except Exception as error:
            table[name] = error
    return table


def steps(only, rounds, small, clock):
    """Records of the training steps: milliseconds, quartiles, bytes of temporaries by library."""
    from benchmarks.device import failure

    cases = {name: libraries for name, libraries in _cases(small).items() if only in name}
    with pool() as workers:
        compiled = dict(zip(cases, workers.map(_compile, cases.values()), strict=True))
    clock.say("steps: compiled")
    records = []
    for name, programs in compiled.items():
        good = {library: v for library, v in programs.items() if isinstance(v, tuple)}
        times, broken = race({library: running(v[0], [v[1]]) for library, v in good.items()}, rounds)
        record = {"program": name}
        for library, seconds in times.seconds.items():
            quartiles = [1e3 * float(q) for q in np.quantile(seconds, (0.25, 0.75))]
            found = {"ms": 1e3 * times.median(library), "quartiles": quartiles, "temporaries": good[library][2]}
            record[library] = found
        broken |= {library: v for library, v in programs.items() if isinstance(v, Exception)}
        record |= {library: failure(error) for library, error in broken.items()}
        records.append(record)
        clock.say(name)
    return records


def accuracy(only, rounds, small, clock):
    """Worst errors on hostile inputs by library, and those of rows by implementation."""
    names = [name for name in hostile.hostile((1,) * 4) if only in name][: 3 if small else None]
    with pool() as workers:
        inputs = dict(zip(names, workers.map(hostile.measure, names), strict=True))
    clock.say("accuracy: hostile inputs")
    cases = [Case(kind, (64, 4096), mean=mean) for kind in ROWS for mean in (0, 1e4)]
    rows = {case.name: _errors(case) for case in cases if only in case.name}
    clock.say("accuracy: rows")
    return {"hostile": inputs, "rows": rows}


def _errors(case):
    """Worst errors of y and dx by name, in units of 2⁻²⁴ (1 + |y|), against float64."""
    from benchmarks.device import failure

    g, (x, scale, bias, *state) = jax.tree.map(np.asarray, case.data())
    want = _exact(case, *(None if v is None else v.astype(np.float64) for v in (g, x, scale, bias)))

    def of(apply):
        if apply is None:
            return None
        y, _, (dx, *_) = jax.jit(with_vjp(apply))(g, x, scale, bias, *state)
        return y, dx

    runs = {name: lambda build=build: of(build(case)) for name, build in builders(case).items()}
    for name, f in device_torch.norms(case).items():
        runs[name] = partial(device_torch.gradient, f, case, g, x, scale, bias)
    table = {}
    for name, run in runs.items():
        try:
            if (got := run()) is not None:
                table[name] = {what: _worst(*pair) for what, *pair in zip(("y", "dx"), got, want, strict=True)}
        except Exception as error:
            table[name] = failure(error)
    return table


def _exact(case, g, x, scale, bias, epsilon=1e-5):
    """y and dx in the precision of the arguments."""
    mean = partial(np.mean, axis=-1, keepdims=True)
    centre = mean(x) if case.kind == "layer" else 0
    r = 1 / np.sqrt(mean((x - centre) ** 2) + epsilon)
    unit, g = (x - centre) * r, g * scale
    dx = r * (g - unit * mean(g * unit) - (mean(g) if case.kind == "layer" else 0))
    return unit * scale + (0 if bias is None else bias), dx


def _worst(got, want):
    error = np.abs(np.asarray(got, np.float64) - want) / (1 + np.abs(want))
    return float(np.nan_to_num(error, nan=np.inf).max()) * 2**24
