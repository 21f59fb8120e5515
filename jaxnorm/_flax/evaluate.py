"""How a model is called with what a batch holds, and told to evaluate."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

_FLAGS = {"train": False, "training": False, "is_training": False, "deterministic": True}
"""How models are told to evaluate."""


def model_arguments(batch: Any, kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a model, from a batch of either, or of one; and what all batches share."""
    if isinstance(batch, Mapping):
        return (), {**kwargs, **batch}
    return (tuple(batch) if isinstance(batch, tuple | list) else (batch,)), dict(kwargs)


def eval_kwargs(call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], who: str) -> dict[str, Any]:
    """Keyword arguments with which a model evaluates these inputs, where they fit it. `call` is a bound method."""
    parameters = inspect.signature(call).parameters
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    by_position = [n for n, p in named.items() if p.kind is not p.KEYWORD_ONLY]
    taken = dict(zip(by_position, args, strict=False))
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    _check_positions(taken, len(args), len(args) if any_number else len(by_position), who)
    evaluate = {name: value for name, value in _FLAGS.items() if _is_asked(named.get(name)) and name not in taken}
    kwargs = {**evaluate, **kwargs}
    missing = [n for n, p in named.items() if p.default is p.empty and n not in taken and n not in kwargs]
    if missing:
        raise TypeError(
            f"{who}: the model requires {', '.join(missing)}. Give it to {who}, as {missing[0]}=..., or in "
            f"each batch: {{'x': x, {missing[0]!r}: ...}}."
        )
    return kwargs


def _check_positions(taken: Mapping[str, Any], count: int, most: int, who: str) -> None:
    """Says where arguments by position can't mean what was meant."""
    flags = {"use_running_average", *_FLAGS}
    misplaced = [name for name, value in taken.items() if name in flags and not _is_flag(value)]
    if count > most or misplaced:
        where = f"one of which is {misplaced[0]}" if misplaced else f"and it takes {most}"
        raise TypeError(
            f"{who}: a batch gives the model {count} arguments by position, {where}. Leave labels out: "
            f"(x for x, _ in batches). Give a mask by its name, as in {{'x': x, 'mask': mask}}."
        )


def _is_flag(value: Any) -> bool:
    """Whether it says yes or no: within the compiled step, a flag of a batch is an array of that."""
    return np.shape(value) == () and jnp.result_type(value) == jnp.bool_


def _is_asked(flag: inspect.Parameter | None) -> bool:
    """Whether a parameter wants to be told: it is required, or True or False by default."""
    return flag is not None and (flag.default is flag.empty or isinstance(flag.default, bool))
