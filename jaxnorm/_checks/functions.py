"""Messages about functions that are given where another kind is meant."""

import inspect
from typing import Any


def runs_when_called(function: Any, who: str) -> None:
    """Raises unless it is a function whose body runs within its call."""
    if not callable(function):
        raise TypeError(f"{who}: {function!r} is not a function.")
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        name = getattr(function, "__name__", "the function")
        raise TypeError(
            f"{who}: {name} is a generator or async: it runs after the call. Give the function that it calls."
        )
