"""Flax's names for its norms stand for ours for a while: in public code, they are found when a model is called."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def replaced(modules: Sequence[ModuleType], replacements: Sequence[type]) -> Iterator[None]:
    """Each class stands under its own name in the modules that had one of its bases there, and then that again."""
    before = []
    for module in modules:
        for ours in replacements:
            theirs = vars(module).get(ours.__name__)
            if theirs in ours.__mro__[1:]:
                before.append((module, theirs))
                setattr(module, ours.__name__, ours)
    try:
        yield
    finally:
        for module, theirs in before:
            setattr(module, theirs.__name__, theirs)
