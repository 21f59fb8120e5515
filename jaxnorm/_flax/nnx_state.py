"""Parameters and running statistics in variables of flax.nnx.

A norm of jaxnorm says in `_kinds` of which types its parameters and its state are, with which fields.
"""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from flax import nnx
from flax.errors import TraceContextError
from jax import lax

from jaxnorm import _checks
from jaxnorm._annotations import Axes
from jaxnorm._specs.frozen import FrozenNorm
from jaxnorm._state.tree import has_stats
from jaxnorm._types import ADDED, RunningStats, fields, running_of

_FLAX = nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm


def static_sizes(features: Axes) -> int | tuple[int, ...]:
    """Sizes as nnx keeps them: a list would be a node of its own."""
    return tuple(features) if isinstance(features, Sequence) else features


def kind_of(tree: Any) -> tuple[type, tuple[str, ...]]:
    """The type of parameters or of a state, and their fields."""
    return type(tree), tuple(fields(tree))


def add_variables(
    module: nnx.Module, variable: type[nnx.Variable], tree: Any, inits: Mapping[str, Any], rngs: nnx.Rngs | None,
    metadata: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Gives a module a variable for each field of its parameters or its state, some of them by initializers."""
    for name, value in fields(tree).items():
        if value is not None and name in inits:
            init = inits[name] or (lambda key, *_, value=value: value)
            # A key is drawn for each, as Flax's norms do, and not used where there is no initializer.
            key = None if rngs is None and inits[name] is None else _checks.key(rngs, "nnx.Norm")
            value = init(key, value.shape, value.dtype)
        setattr(module, name, nnx.data(None) if value is None else variable(value, **metadata.get(name, {})))


def read(module: nnx.Module, names: Sequence[str]) -> list[Any]:
    """The values of variables; None for those that a module lacks."""
    return [None if v is None else v[...] for v in (getattr(module, name, None) for name in names)]


def read_affine(module: Any) -> list[Any]:
    """The scale of a drop-in, and the bias if it can have one; without a derivative where they are frozen."""
    values = read(module, ("scale", "bias") if hasattr(module, "bias") else ("scale",))
    return lax.stop_gradient(values) if module.frozen == "all" else values


def read_params(module: Any) -> Any:
    """The parameters of a module, of the kind that it has."""
    return _read_tree(module, module._kinds[0])


def read_state(module: Any) -> Any:
    """The state of a module; with what `accumulate` or `recalibrate` has added to running statistics."""
    added = {name: getattr(module, name).get_value() for name in ADDED if hasattr(module, name)}
    state = _read_tree(module, module._kinds[1])
    return running_of({**fields(state), **added}) if added else state


def read_all(model: nnx.Module) -> dict[str, Any]:
    """The running statistics of all norms of jaxnorm in a model that are not frozen, by their path."""
    norms = ((path, m) for path, m in modules(model) if hasattr(m, "_kinds") and not is_frozen(m))
    states = ((path, read_state(module)) for path, module in norms)
    return {path: state for path, state in states if has_stats(state)}


def store_all(model: nnx.Module, states: Mapping[str, Any]) -> None:
    """Sets the running statistics of norms of jaxnorm in a model, by their path."""
    for path, module in modules(model):
        if path in states and hasattr(module, "_kinds"):
            store(module, states[path])


def stats_of_flax(model: nnx.Module) -> dict[str, RunningStats]:
    """The running statistics of Flax's own batch norms in a model, by their path."""
    theirs = ((path, m) for path, m in modules(model) if isinstance(m, nnx.BatchNorm) and not hasattr(m, "_kinds"))
    return {path: RunningStats(*read(m, ("mean", "var"))) for path, m in theirs}


def is_norm(module: Any) -> bool:
    """Whether a module is a norm, one of jaxnorm or of Flax."""
    return hasattr(module, "_kinds") or isinstance(module, _FLAX)


def modules(model: nnx.Module) -> Iterator[tuple[str, Any]]:
    """All modules of a model, with their place."""
    return ((".".join(map(str, path)) or "model", m) for path, m in nnx.iter_modules(model))


def _read_tree(module: Any, kind: tuple[type, tuple[str, ...]]) -> Any:
    """The variables of a module as a NamedTuple or mapping of this kind, or None."""
    of_type, names = kind
    values = dict(zip(names, read(module, names), strict=True))
    if of_type is type(None):
        return None
    return of_type(values) if issubclass(of_type, Mapping) else of_type(**values)  # pyright: ignore[reportCallIssue]


def store(module: nnx.Module, state: Any) -> None:
    """Sets the variables of a state; adds and removes what `accumulate`, `commit` and `recalibrate` do."""
    values = {name: value for name, value in fields(state).items() if value is not None}
    for name in ADDED:
        if name not in values and hasattr(module, name):
            delattr(module, name)
    for name, value in values.items():
        if hasattr(module, name):
            _set(getattr(module, name), value)
        else:
            setattr(module, name, nnx.BatchStat(value))


def evaluates(module: Any, use_running_average: bool | None) -> bool:
    """Whether a module uses running averages, as it is told in the call, or else was told before."""
    told = module.use_running_average if use_running_average is None else use_running_average
    return _checks.flag(told, type(module).__name__, "use_running_average")


def is_frozen(module: Any) -> bool:
    """Whether the statistics of a norm of jaxnorm stay as they are."""
    return isinstance(getattr(module, "spec", None), FrozenNorm) or getattr(module, "frozen", None) is not None


def _set(variable: nnx.Variable, value: Any) -> None:
    """Sets a variable of nnx. Complex data makes it complex."""
    try:
        variable.set_value(value)
    except TraceContextError as error:
        error.add_note(
            "Running statistics can't be updated from inside a transform that closes over the module. Pass the module "
            "as an argument, and name the axis that shares its statistics: nnx.vmap(lambda model, x: model(x), "
            "in_axes=(None, 0), axis_name='batch')(model, x), with axis_name='batch' in the norm, too."
        )
        raise
