"""Messages about arrays of other libraries that do not fit."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any


def arrays_fit(found: Mapping[str, Any], wanted: Mapping[str, Any], who: str) -> None:
    """Raises unless there are arrays of these names and shapes, and no others; names all that do not fit."""
    wrong = [f"{k} has shape {found[k]}, not {wanted[k]}" for k in wanted if k in found and found[k] != wanted[k]]
    lists = {"missing": sorted(wanted.keys() - found.keys()), "unexpected": sorted(found.keys() - wanted.keys())}
    said = [f"{what}: {', '.join(names)}" for what, names in lists.items() if names] + wrong
    if said:
        raise ValueError(f"{who}: arrays do not fit. {'; '.join(said)}.")


def meet_once(names: Iterable[str], who: str) -> None:
    """Raises where two arrays would land in one place."""
    if several := [name for name, n in Counter(names).items() if n > 1]:
        raise ValueError(f"{who}: several arrays meet in {', '.join(sorted(several))}. Make the rules tell them apart.")
