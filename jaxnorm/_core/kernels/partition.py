"""Kernels under plain jit: the partitioner can't look into one, so it is told that rows may be cut, features not.

What Transformer Engine does likewise. Under shard_map, and on one device, there is nothing to tell.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array


def devices_known(operation: Primitive) -> None:
    """Lowers programs with this operation for devices that are known, as `custom_partitioning` needs them.

    JAX looks for its own operations in a program, and has no public way to add one. Without it partitioned rows are
    gathered: tests/test_kernels.py would say so.
    """
    with contextlib.suppress(ImportError):
        from jax._src.dispatch import prim_requires_devices_during_lowering

        prim_requires_devices_during_lowering.add(operation)


def by_shards(run: Callable[..., Any], lead: int, outputs: tuple[bool, ...], several: bool, *args: Array) -> Any:
    """`run` on each device's rows.

    Args of the dimensions of the first, x, are cut as that is, and vectors along their `lead` leading axes. `outputs`
    are like x where that says True, and else vectors: their sums over rows are summed over devices, too.
    """
    ndim = args[0].ndim
    cut = [f"l{i}" for i in range(ndim - 1)]

    def rule(full: bool, last: str) -> str:
        return " ".join([*(cut if full else cut[:lead]), last])

    def full(v: Any) -> bool:
        return v.ndim == ndim and v.shape == args[0].shape

    # Axes of size 1 at the end are ε's, and no features.
    inputs = [rule(full(v), "c" if v.shape[-1] == args[0].shape[-1] else "o") for v in args]
    sharding_rule = f"{', '.join(inputs)} -> {', '.join(rule(like_x, 'c') for like_x in outputs)}"

    def shardings(mesh: Any, shapes: Any) -> tuple[list[Any], Any, list[Any]]:
        spec = shapes[0].sharding.spec
        rows = [*spec, *[None] * ndim][: ndim - 1]

        def placed(like_x: bool) -> NamedSharding:
            return NamedSharding(mesh, PartitionSpec(*(rows if like_x else rows[:lead]), None))

        found = [placed(like_x) for like_x in outputs]
        return [placed(full(v)) for v in args], found if several else found[0], rows[lead:]

    def partition(mesh: Any, shapes: Any, _: Any) -> tuple[Any, ...]:
        of_inputs, of_outputs, summed = shardings(mesh, shapes)
        names = tuple(name for axis in summed if axis for name in (axis if isinstance(axis, tuple) else (axis,)))

        def lower(*args: Array) -> Any:
            found = run(*args)
            if not several:
                return found
            sums = iter(lax.psum([v for v, like_x in zip(found, outputs, strict=True) if not like_x], names))
            return [v if like_x else next(sums) for v, like_x in zip(found, outputs, strict=True)]

        return mesh, lower, of_outputs, tuple(of_inputs)

    def infer(mesh: Any, shapes: Any, _: Any) -> Any:
        return shardings(mesh, shapes)[1]

    # It reads the signature, and takes none with keywords.
    call = custom_partitioning(lambda *args: run(*args))
    call.def_partition(
        partition=partition, infer_sharding_from_operands=infer, sharding_rule=sharding_rule,
        need_replication_factors=("c",),
    )  # fmt: skip
    return call(*args)
