"""Batch norm or instance norm, and when? An experiment on real handwritten digits, run by `python -m jaxnorm`.

The modules, in the order in which an experiment passes through them: `cli` and `options`, `data`, `model`, `training`
(the jitted, vmapped programs), `experiment`, `analysis`, `report` and `plot`.
"""

from importlib.util import find_spec

_REQUIRED = ("matplotlib", "optax", "rich", "sklearn", "typer")


def missing_packages() -> list[str]:
    """The packages of the extra `demo` that are not installed."""
    return [name for name in _REQUIRED if find_spec(name) is None]
