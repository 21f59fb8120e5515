"""Norms of a whole model become parts of the layers beside them, whichever kind of model it is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxnorm._trained.fold import fold
from jaxnorm._trained.neighbours import Source, arguments, sources
from jaxnorm._types import Affine, RunningStats


class FoldReport(NamedTuple):
    """Norms of a model by their places, and what became of them.

    `folded`: the layer that each is a part of now. `kept`: why it stays.
    """

    folded: dict[str, str]
    kept: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{norm} is in {layer}" for norm, layer in self.folded.items()]
        return "\n".join(lines + [f"{norm} stays: {why}" for norm, why in self.kept.items()])


class Part(NamedTuple):
    """A norm or a linear layer of a model, as it was called."""

    place: str
    spec: Any
    """None for a layer."""
    arrays: dict[str, Any]
    """Those of a layer change when a norm becomes a part of it."""
    refusal: str | None
    """Why it stays as it is."""
    options: Mapping[str, Any]
    """How `fold` is told of the layer."""
    input_dtype: Any
    dtype: Any = None
    """That of its result."""


def fold_parts(parts: Sequence[Part], program: Any, given: Sequence[Any]) -> FoldReport:
    """Folds each norm into the layer straight before it, or after it, in a program where calls of parts are marked.

    `given` are the arguments of the program.
    """
    found = sources(program)
    parts = _with_own_variables(parts, found, program, given)
    times = Counter(parts[call].place for call in found)
    report = FoldReport({}, {})
    for call, source in found.items():
        norm = parts[call]
        if norm.spec is None or norm.place in report.kept:
            continue
        why = _refusal(norm, times)
        if why is None:
            why = _fold_beside(call, source, parts, found, times, report)
        if why is not None:
            report.kept[norm.place] = why
    return report


def _with_own_variables(
    parts: Sequence[Part], found: Mapping[int, Source], program: Any, given: Sequence[Any]
) -> list[Part]:
    """The parts; they refuse unless their variables are arguments as they are, and nobody else reads those of a layer.

    Not so what a kernel is computed from, as in weight norm, or what a scan over layers takes a slice of.
    """
    variables, uses = arguments(program)
    checked = list(parts)
    for call in found:
        part = parts[call]
        own = {name: variables.get((call, name)) for name in part.arrays}
        alone = all(number is not None and given[number] is part.arrays[name] for name, number in own.items())
        if part.spec is None:
            alone &= bool(own) and all(uses[number] == 1 for number in own.values())  # pyright: ignore[reportArgumentType]
        if part.refusal is None and not alone:
            refusal = f"Variables of {part.place} are computed, shared, or several, as in a scan over layers."
            checked[call] = part._replace(refusal=refusal)
    return checked


def _refusal(part: Part, times: Mapping[str, int]) -> str | None:
    if times[part.place] > 1:
        return f"{part.place} is called {times[part.place]} times, and what is before and after it differs."
    return part.refusal


def _fold_beside(
    call: int, source: Source, parts: Sequence[Part], found: Mapping[int, Source], times: Mapping[str, int],
    report: FoldReport,
) -> str | None:  # fmt: skip
    """Folds a norm into the layer before it, or else after it; or says why neither will do."""
    norm = parts[call]
    layer = _layer_before(source, parts)
    candidates = [(layer, False)] if isinstance(layer, Part) else []
    reasons = [layer] if isinstance(layer, str) else []
    after = (other for other, its in found.items() if its.call == call and not its.shared)
    candidates += [(parts[other], True) for other in after if parts[other].spec is None]
    for layer, before in candidates:
        why = _refusal(layer, times) or (_rounds(norm, layer) if before else None) or _folded(norm, layer, before)
        if why is None:
            report.folded[norm.place] = layer.place
            return None
        reasons.append(why)
    return " ".join(reasons)


def _layer_before(source: Source, parts: Sequence[Part]) -> Part | str:
    """The layer whose result a norm alone takes; or in words what is there instead."""
    if source.call is None:
        return f"What comes straight before it is no layer, but {source.maker}."
    before = parts[source.call]
    if source.shared:
        return f"What {before.place} gives is used elsewhere, too."
    return before if before.spec is None else f"What comes straight before it is {before.place}, a norm."


def _rounds(norm: Part, layer: Part) -> str | None:
    """Says so where a layer, or a norm before it, would round what comes in, which then has its mean still."""
    for part in (norm, layer):
        if jnp.finfo(part.dtype).bits < jnp.finfo(norm.input_dtype).bits:
            return f"{part.place} computes in {part.dtype} what comes as {norm.input_dtype}, and its mean costs digits."
    return None


def _folded(norm: Part, layer: Part, before: bool) -> str | None:
    """Folds a norm into a layer; or says why not."""
    affine = Affine(norm.arrays.get("scale"), norm.arrays.get("bias"))
    state = RunningStats(norm.arrays["mean"], norm.arrays["var"]) if "mean" in norm.arrays else None
    kernel, bias = layer.arrays["kernel"], layer.arrays.get("bias")
    try:
        kernel, bias = fold(norm.spec, affine, state, kernel, bias, before=before, **layer.options)
    except (TypeError, ValueError) as error:
        return str(error).removeprefix("fold: ")
    layer.arrays.update(kernel=kernel, bias=bias)
    return None
