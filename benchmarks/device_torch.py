"""PyTorch on its device: eager and compiled norms, with data that are made there."""

import itertools
from functools import partial
from importlib.util import find_spec
from types import FunctionType

import numpy as np

from benchmarks import torch_norms
from benchmarks.contestants import Contestant

_numbers = itertools.count()


def norms(case):
    """Functions of (x, scale, bias, mean, var) by name; none without PyTorch, and for masks."""
    if case.masked or not find_spec("torch"):
        return {}
    import torch

    # A program that no shape is free in is one for each case: more than the compiler's few for a function.
    formula = torch_norms.formula(case)
    return {"torch": formula, "torch.compile": torch.compile(_own(formula), dynamic=False)}


def _own(f):
    """The function with code of its own: torch.compile keeps its programs by that, and tries them in turn."""
    code = f.__code__.replace(co_name=f"{f.__code__.co_name}_{next(_numbers)}")
    return FunctionType(code, f.__globals__, code.co_name, f.__defaults__, f.__closure__)


def place():
    """Where its tensors are."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def wait(_=None):
    """Until all that is enqueued is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free():
    """Gives memory that nothing uses back to the device, for JAX."""
    if find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def data(case, count):
    """So many sets of arguments, what to differentiate by, and a cotangent, random and made on the device."""
    import torch

    dtype, device = getattr(torch, case.dtype), place()
    random = torch.Generator(device).manual_seed(0)
    normal = partial(torch.randn, case.shape, dtype=dtype, device=device, generator=random)
    vector = partial(torch.rand, case.channels, device=device, generator=random)
    state = partial(torch.full, (case.channels,), device=device, dtype=torch.float32)
    sets = []
    for _ in range(count):
        bias = None if case.kind == "rms" else 1 + vector()
        arrays = normal(), normal() + case.mean, 1 + vector(), bias, state(case.expected), state(1)
        sets.append(torch_norms.prepared(case, *arrays))
    return sets


def contestants(functions, sets, both):
    """Runs of the norms over the sets of data in turn."""
    return {name: Contestant(_run(f, sets, both), wait) for name, f in functions.items()}


def _run(f, sets, both):
    import torch

    turn = itertools.cycle(sets)

    def forward():
        args, _, _ = next(turn)
        with torch.no_grad():
            return f(*args)

    def with_backward():
        args, inputs, g = next(turn)
        y = f(*args)
        return y, torch.autograd.grad(y, inputs, g)

    return with_backward if both else forward


def warm(case, functions):
    """Compiles: each function runs once each way. The exceptions of those that fail, by name."""
    errors, sets = {}, data(case, 1)
    for name, f in functions.items():
        try:
            for both in (False, True):
                _run(f, sets, both)()
            wait()
        except Exception as error:
            errors[name] = error
    return errors


def gradient(f, case, g, x, scale, bias):
    """y and dx of NumPy's arrays."""
    import torch

    there = [v if v is None else torch.from_numpy(np.array(v, np.float32)).to(place()) for v in (g, x, scale, bias)]
    args, inputs, g = torch_norms.prepared(case, *there, None, None)
    y = f(*args)
    dx, *_ = torch.autograd.grad(y, inputs, g)
    return y.detach().cpu().numpy(), dx.cpu().numpy()
