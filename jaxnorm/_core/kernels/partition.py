"""Kernels under plain jit: the partitioner can't look into one, so it is told that rows may be cut, features not.

What Transformer Engine does likewise. Under shard_map, and on one device, there is nothing to tell.
"""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array


def devices_known(operation: Primitive) -> None:
    """Lowers programs with this operation for devices that are known, as `custom_partitioning` needs them.

    JAX looks for its own operations in a program, and has no public way to add one. Without it partitioned rows are
    gathered: tests/core/test_kernels.py would say so.
    """
    with contextlib.suppress(ImportError):
        from jax._src.dispatch import prim_requires_devices_during_lowering

        prim_requires_devices_during_lowering.add(operation)


class _Cut(NamedTuple):
    """How arrays may be cut: what is like x along its leading axes, vectors along the first `lead` of these."""

    shape: tuple[int, ...]
    lead: int

    def like_x(self, v: Any) -> bool:
        """Whether an array has the shape of x."""
        return v.shape == self.shape

    def rule(self, like_x: bool, last: str) -> str:
        """The axes of an array by name, for Shardy."""
        axes = [f"l{i}" for i in range(len(self.shape) - 1)]
        return " ".join([*(axes if like_x else axes[: self.lead]), last])

    def rows(self, x: Any) -> list[Any]:
        """Where x lies, along its leading axes."""
        ndim = len(self.shape)
        return [*x.sharding.spec, *[None] * ndim][: ndim - 1]

    def sharding(self, mesh: Any, rows: list[Any], like_x: bool) -> NamedSharding:
        """The place of an array beside x."""
        return NamedSharding(mesh, PartitionSpec(*(rows if like_x else rows[: self.lead]), None))


def by_shards(run: Callable[..., list[Array]], lead: int, outputs: tuple[bool, ...], *args: Array) -> list[Array]:
    """`run` on each device's rows.

    Args of the shape of the first, x, are cut as that is, and vectors along their `lead` leading axes. `outputs` are
    like x where that says True, and else vectors: their sums over rows are summed over devices, too.
    """
    cut = _Cut(args[0].shape, lead)
    # Axes of size 1 at the end are ε's, and no features.
    inputs = [cut.rule(cut.like_x(v), "c" if v.shape[-1] == cut.shape[-1] else "o") for v in args]
    sharding_rule = f"{', '.join(inputs)} -> {', '.join(cut.rule(like_x, 'c') for like_x in outputs)}"

    def infer(mesh: Any, shapes: Any, _: Any) -> list[NamedSharding]:
        return [cut.sharding(mesh, cut.rows(shapes[0]), like_x) for like_x in outputs]

    def partition(mesh: Any, shapes: Any, results: Any) -> tuple[Any, ...]:
        rows = cut.rows(shapes[0])
        of_inputs = tuple(cut.sharding(mesh, rows, cut.like_x(v)) for v in args)
        names = tuple(name for axis in rows[lead:] if axis for name in (axis if isinstance(axis, tuple) else (axis,)))

        def lower(*args: Array) -> list[Array]:
            found = run(*args)
            sums = iter(lax.psum([v for v, like_x in zip(found, outputs, strict=True) if not like_x], names))
            return [v if like_x else next(sums) for v, like_x in zip(found, outputs, strict=True)]

        return mesh, lower, infer(mesh, shapes, results), of_inputs

    # It reads the signature, and takes none with keywords.
    call = custom_partitioning(lambda *args: run(*args))
    call.def_partition(
        partition=partition, infer_sharding_from_operands=infer, sharding_rule=sharding_rule,
        need_replication_factors=("c",),
    )  # fmt: skip
    return call(*args)
