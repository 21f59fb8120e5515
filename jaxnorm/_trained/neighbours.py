"""Which of a model's layers follow one another straight, by its program, and which of its arguments each layer has.

What goes into and out of each call is marked, and so are its variables.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jax.ad_checkpoint import checkpoint_name

_INTO, _OUT_OF, _VARIABLE = "jaxnorm: into ", "jaxnorm: out of ", "jaxnorm: variable "
_CALLS = ("jit", "remat2", "checkpoint", "closed_call", "custom_jvp_call", "custom_vjp_call")
"""Operations that call a part of the program with their own arguments, in order."""


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


def mark_variables(variables: Mapping[str, Any], call: int) -> None:
    """Marks the variables of this call by their names."""
    for name, value in variables.items():
        checkpoint_name(value, f"{_VARIABLE}{call} {name}")


class Arguments(NamedTuple):
    """The arguments of a program, by their number."""

    variables: dict[tuple[int, str], int]
    """The argument that a marked variable of a call is, by its name. One that is computed is none."""
    uses: Counter[int]
    """How often each is read."""


def arguments(program: Any) -> Arguments:
    """Where the arguments of a program are read."""
    found = Arguments({}, Counter())
    _read(program.jaxpr, {id(v): number for number, v in enumerate(program.jaxpr.invars)}, found)
    return found


def _read(part: Any, numbers: Mapping[int, int], found: Arguments) -> None:
    """Adds what a part of a program reads of the arguments, of which values that are known by `id` have the numbers."""
    for equation in part.eqns:
        inner = next(iter(_within(equation)), None) if equation.primitive.name in _CALLS else None
        name = str(equation.params.get("name", ""))
        read = [(place, numbers[id(v)]) for place, v in enumerate(equation.invars) if id(v) in numbers]
        if inner is not None:
            _read(inner, {id(inner.invars[place]): number for place, number in read}, found)
        elif name.startswith(_VARIABLE) and read:
            call, variable = name.removeprefix(_VARIABLE).split(" ", 1)
            found.variables[int(call), variable] = read[0][1]
        elif not name.startswith(_VARIABLE):
            found.uses.update(number for _, number in read)


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
        for inner in _within(equation):
            yield from _parts(inner)


def _within(equation: Any) -> Iterator[Any]:
    """The parts of a program that an equation calls."""
    for value in equation.params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield inner


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
