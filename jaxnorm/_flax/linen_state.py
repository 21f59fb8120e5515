"""Running statistics in variables of flax.linen."""

from typing import Any

from flax import linen as nn

from jaxnorm._types import ADDED, fields, running_fields, running_of


def is_recalibrating(module: nn.Module) -> bool:
    """Whether data are to replace the statistics of a module: what it is told of training has no effect then."""
    return module.has_variable("batch_stats", "seen") and not module.has_variable("batch_stats", "before")


def with_added(module: nn.Module, state: Any) -> Any:
    """Running statistics, with a `weight_sum` that is there, and what `jn.accumulate` or `jn.recalibrate` has added."""
    names = [name for name in ("weight_sum", *ADDED) if module.has_variable("batch_stats", name)]
    added = {name: module.get_variable("batch_stats", name) for name in names}
    return running_of({**running_fields(state), **added}) if added else state


def write(module: nn.Module, state: Any) -> None:
    """Sets the variables of a state. A field that is None is written only over a variable that is there."""
    for name, value in fields(state).items():
        if value is not None or module.has_variable("batch_stats", name):
            module.put_variable("batch_stats", name, value)
