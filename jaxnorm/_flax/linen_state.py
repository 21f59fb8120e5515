"""Running statistics in variables of flax.linen."""

from typing import Any

from flax import linen as nn

from jaxnorm._types import ADDED, fields, running_fields, running_of


def is_recalibrating(module: nn.Module) -> bool:
    """Whether data are to replace the statistics of a module: what it is told of training has no effect then."""
    return module.has_variable("batch_stats", "seen") and not module.has_variable("batch_stats", "before")


def with_added(module: nn.Module, state: Any) -> Any:
    """Running statistics, with the variables that `jn.accumulate` or `jn.recalibrate` has added to them."""
    added = {
        name: module.get_variable("batch_stats", name) for name in ADDED if module.has_variable("batch_stats", name)
    }
    return running_of({**running_fields(state), **added}) if added else state


def write(module: nn.Module, state: Any) -> None:
    """Sets the variables of a state; what is None has one only where there was one."""
    for name, value in fields(state).items():
        if value is not None or module.has_variable("batch_stats", name):
            module.put_variable("batch_stats", name, value)
