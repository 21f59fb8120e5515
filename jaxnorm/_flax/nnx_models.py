"""What is done to all norms in a model of flax.nnx."""

from collections.abc import Iterable
from typing import Any

from flax import nnx
from jaxtyping import ArrayLike

from jaxnorm._flax import nnx_state
from jaxnorm._flax.nnx_calls import stats_step
from jaxnorm._flax.selection import Select, is_selected, nothing_selected
from jaxnorm._state.recalibrate import recalibrate as recalibrate_by_steps
from jaxnorm._state.running import begin_accumulating
from jaxnorm._types import plain


def accumulate(model: nnx.Module, start: ArrayLike = True) -> None:
    """Running statistics of a model to which the batches from here on are parts of one, in place: `jn.accumulate`.

    mean ← m · mean + (1 − m) · μ,    var ← m · var + (1 − m) · σ²,    with μ and σ² of all parts, merged

    Args:
        model: a module with norms of jaxnorm, `Norm` or `BatchNorm`, in it. They get variables `before` and `seen`.
        start: whether a whole batch begins here; it may be traced.

    Shapes and dtypes stay what they are.

    Paper: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    >>> norm = jn.nnx.BatchNorm(1, momentum=0.9, rngs=nnx.Rngs(0))
    >>> jn.nnx.accumulate(norm)
    >>> ys = [norm(part) for part in (jnp.array([[1.0], [3.0]]), jnp.array([[8.0]]))]
    >>> jn.nnx.commit(norm)
    >>> print(norm.mean[...].round(3))  # as of one batch of three
    [0.4]
    """
    nnx_state.store_all(
        model, {path: begin_accumulating(state, start) for path, state in nnx_state.read_all(model).items()}
    )


def commit(model: nnx.Module) -> None:
    """Running statistics of a model after the parts that `accumulate` took as one, in place: `jn.commit`.

    accumulate, then commit = nothing done

    Args:
        model: as for `accumulate`. Shapes and dtypes stay what they are.

    >>> norm = jn.nnx.Norm(jn.BatchNorm(), 1)
    >>> jn.nnx.accumulate(norm)
    >>> jn.nnx.commit(norm)
    """
    nnx_state.store_all(model, {path: plain(state) for path, state in nnx_state.read_all(model).items()})


def recalibrate(model: nnx.Module, batches: Iterable[Any], **kwargs) -> None:
    """Population statistics in the place of running averages, for all batch norms of a model, in place.

    mean = μ,    var = σ² n / (n − ddof),    of all data that each norm sees, merged over the batches

    The model runs in evaluation, without dropout: its norms use the statistics of each batch nevertheless.
    `jn.recalibrate` is the same for functions; use that to shard batches over named axes.

    Args:
        model: a module with norms of jaxnorm, `Norm` or `BatchNorm`, in it; trained, or with averaged weights. Those
            that are frozen stay as they are.
        batches: any iterable of what the model takes, without labels: an array, a tuple of arguments by position, or a
            mapping of keyword arguments, as `{"x": x, "mask": mask}`. Batches may be unequal, and arrays on several
            devices. One alone is `[x]`: of an array, each entry along its first axis would be a batch.
        kwargs: further ones for the model. A flag `train`, `training`, `is_training` or `deterministic` of it, if it is
            required or a bool by default, is set to evaluation where it is not given.

    Shapes and dtypes stay what they are, and so does all else in the model; all of it, where something is raised.

    Raises:
        ValueError: there are no batches or no batch norms of jaxnorm; a norm saw no data, as one of flax.nnx never
            does; or each batch had one value per statistic. TypeError: a batch has more arguments than the model, one
            of them lands in a flag, or the model requires more.

    Paper: Ioffe & Szegedy 2015, "Batch Normalization", algorithm 2.

    >>> norm = jn.nnx.BatchNorm(1, rngs=nnx.Rngs(0))
    >>> jn.nnx.recalibrate(norm, [jnp.array([[1.0], [3.0]]), jnp.array([[8.0]])])
    >>> print(norm.mean[...])
    [4.]
    """
    step, stats, variables = stats_step(model, kwargs, "recalibrate")
    if stats:
        # Beside ours, no data come to Flax's own norms: an error says so.
        stats |= nnx_state.stats_of_flax(model)
    nnx_state.store_all(model, recalibrate_by_steps(step, stats, ((variables, batch) for batch in batches)))


def freeze(model: nnx.Module, select: Select = None, *, trained: bool = False) -> None:
    """Norms of a model that stay as they are deployed, in place: by their running statistics, whatever it is told.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² running statistics,    ∂y/∂γ = ∂y/∂β = 0 unless `trained`

    `model.train()` does not undo it, nor a flag in the call; `unfreeze` does. A frozen norm can be closed over in
    `nnx.jit`, `recalibrate` and `accumulate` leave it alone, and variables have the same names and shapes. It is part
    of the graph: freeze before `nnx.split`. For a spec there is `jn.freeze`.

    Args:
        model: a module with norms of jaxnorm in it.
        select: which of them: None for all with running statistics; a class of modules or specs, or several; the place
            of a part of the model, as "blocks.0"; or a function of the place, a tuple, and the module.
        trained: whether gradients reach scale and bias. Without, an optimizer may still decay them: mask them out.

    Raises:
        ValueError: there are none; or one that is selected is a norm of Flax, which can't be frozen.

    Paper: Ren et al. 2015, "Faster R-CNN", as He et al. 2016, "Deep Residual Learning for Image Recognition", train it.

    >>> norm = jn.nnx.BatchNorm(1, rngs=nnx.Rngs(0))
    >>> jn.nnx.freeze(norm)
    >>> norm.train()
    >>> print(norm(jnp.array([[2.0]])).round(3), norm.mean[...])
    [[2.]] [0.]
    """
    norms = _norms(model, select, "freeze")
    for module in norms.values():
        module.frozen = "statistics" if trained else "all"


def unfreeze(model: nnx.Module, select: Select = None) -> None:
    """Norms of a model that do again what the model is told, in place: the way back from `freeze`.

    freeze, then unfreeze = nothing done

    Args:
        model, select: as for `freeze`. Norms that are not frozen stay as they are, with all shapes and dtypes.

    Raises:
        ValueError: there are none.

    Paper: as for `freeze`.

    >>> norm = jn.nnx.Norm(jn.BatchNorm(momentum=0.9), 1)
    >>> jn.nnx.freeze(norm)
    >>> jn.nnx.unfreeze(norm)
    >>> y = norm(jnp.array([[1.0], [3.0]]))
    >>> print(norm.mean[...].round(3))
    [0.2]
    """
    for module in _norms(model, select, "unfreeze").values():
        if "frozen" in vars(module):
            del module.frozen


def _norms(model: nnx.Module, select: Select, who: str) -> dict[str, Any]:
    """The selected norms of a model, by their place."""
    found = {path: module for path, module in nnx.iter_modules(model) if nnx_state.is_norm(module)}
    norms = {".".join(map(str, path)): m for path, m in found.items() if is_selected(select, path, m)}
    if not norms:
        raise ValueError(nothing_selected(who, select, found))
    for path, module in norms.items():
        if not hasattr(module, "frozen"):
            raise ValueError(
                f"{who}: {path or 'the model'} is flax.nnx.{type(module).__name__}, which does what it is told. Its "
                f"drop-in replacement can be frozen: jaxnorm.nnx.{type(module).__name__}."
            )
    return norms
