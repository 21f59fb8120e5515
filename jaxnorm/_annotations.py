"""Annotations that verbs, specs and modules share."""

from collections.abc import Hashable, Sequence
from typing import Literal

from jaxtyping import Array, ArrayLike, Inexact

Axes = int | Sequence[int]
Names = Hashable | Sequence[Hashable]
Implementation = Literal["xla", "pallas"] | None
Data = Inexact[ArrayLike, "..."]
Result = Inexact[Array, "..."]
