"""Which of a model's layers follow one another straight, by its program: what goes into and out of each is marked."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax.ad_checkpoint import checkpoint_name

_INTO, _OUT_OF = "jaxnorm: into ", "jaxnorm: out of "


class Source(NamedTuple):
    """Where a call has its input from: from another call, marked, or from what `maker` names."""

    call: int | None
    maker: str
    shared: bool
    """Whether others take the same."""


def mark_input(x: Any, call: int) -> Any:
    """The input of this call, marked; JAX has names for values, and a program shows them."""
    return checkpoint_name(x, f"{_INTO}{call}")


def mark_output(y: Any, call: int) -> Any:
    """The result of this call, marked."""
    return checkpoint_name(y, f"{_OUT_OF}{call}")


def sources(program: Any) -> dict[int, Source]:
    """For each call that is marked in a program, as of `jax.make_jaxpr`, where its input is from."""
    found = {}
    for part in _parts(program.jaxpr):
        makers = {id(v): equation for equation in part.eqns for v in equation.outvars}
        uses = Counter(id(v) for equation in part.eqns for v in equation.invars) + Counter(map(id, part.outvars))
        for equation in part.eqns:
            call = _number(equation, _INTO)
            if call is not None:
                (x,) = equation.invars
                maker = makers.get(id(x))
                found[call] = Source(_number(maker, _OUT_OF), _name(maker), uses[id(x)] > 1)
    return found


def _parts(jaxpr: Any) -> Iterator[Any]:
    """A program, and those that are called in it."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _parts(inner)


def _number(equation: Any, mark: str) -> int | None:
    """The number of the call that an equation marks so."""
    name = str(equation.params.get("name", "")) if equation is not None else ""
    return int(name.removeprefix(mark)) if name.startswith(mark) else None


def _name(equation: Any) -> str:
    """The name of the function or the operation that makes a value."""
    if equation is None:
        return "the input of the model, or of a part of it that is compiled by itself"
    if "name" in equation.params or "call_jaxpr" not in equation.params:
        return equation.params.get("name", equation.primitive.name)
    # A function with a derivative rule of its own has its name within.
    return _name(equation.params["call_jaxpr"].eqns[-1])
