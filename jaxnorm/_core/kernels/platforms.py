"""Which platform has which kernel for rows, and what their operands are there.

Pallas' backends, `custom_partitioning` and the registration of lowerings are experimental in JAX, or internal to some
degree, and there is no other way to a kernel of one's own. They stand in this folder alone.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import AbstractDevice, AbstractMesh
from jaxtyping import Array

from jaxnorm._core.kernels.partition import by_shards, devices_known
from jaxnorm._core.numerics import dtype_of_sum

_MEASURED = ("H100", "H200")
"""GPUs, one chip with two kinds of memory, on which kernels were timed: elsewhere None stays with XLA."""

_H100 = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H100", num_cores=None, platform="gpu"))


def _module(platform: str) -> ModuleType | None:
    """The kernels of a platform, or None where this JAX has no compiler for them."""
    try:
        if platform == "cuda":
            from jaxnorm._core.kernels import triton as module
        elif platform == "tpu":
            from jaxnorm._core.kernels import mosaic as module
        else:
            return None
    except ImportError:
        return None
    return module


def chosen(features: int) -> bool:
    """Whether kernels are what to use for rows where nobody names an implementation.

    By measurement on an H200 (benchmarks/results): forward and backward take 0.6 to 0.75 of XLA's time, wherever there
    is a kernel for both.
    """
    if jax.default_backend() != "gpu" or not any(name in jax.devices()[0].device_kind for name in _MEASURED):
        return False
    module = _module("cuda")
    return module is not None and module.serves(features, True)


def _segments(v: Array | None, count: int) -> Array | None:
    return v if v is None else v.reshape(count, v.shape[-1])


def _operands(rows: Any, args: Sequence[Array]) -> tuple[Any, ...]:
    """x as (segments, rows, features), and vectors as (segments, …)."""
    x, scale, bias, epsilon = rows.unpack(args)
    count = math.prod(epsilon.shape[:-1])
    cut = x.reshape(count, -1, x.shape[-1])
    return cut, *(_segments(v, count) for v in (rows.factor(scale), bias, epsilon))


def forward(module: ModuleType, *args: Array, rows: Any) -> list[Array]:
    """y by a kernel, and h."""
    x, residual, others = rows.split(args)
    cut, *vectors = _operands(rows, (x, *others))
    dtypes = [rows.dtype]
    if residual is not None:
        residual, dtypes = residual.reshape(cut.shape), [rows.dtype, dtype_of_sum(x, residual)]
    found = module.forward(cut, residual, *vectors, centered=rows.centered, dtypes=dtypes)
    return [v.reshape(x.shape) for v in found]


def backward(module: ModuleType, *args: Array, rows: Any, nonzero: tuple[bool, ...]) -> list[Array]:
    """dx, dγ and dβ by a kernel, those whose tangents are not zero."""
    primals, *cotangents = rows.cotangents(args)
    x, scale, _, epsilon = _operands(rows, primals)
    g, direct = (v if v is None else v.reshape(x.shape) for v in cotangents)
    sums = 2 if nonzero[2] else 1 if nonzero[1] else 0
    dx, *found = module.backward(x, scale, epsilon, g, direct, centered=rows.centered, sums=sums)
    shape = *primals[-1].shape[:-1], x.shape[-1]
    found = [v.reshape(shape) for v, m in zip(found, nonzero[1:], strict=False) if m]
    return [dx.reshape(args[0].shape), *found] if nonzero[0] else found


class _Lowering(NamedTuple):
    """How an operation is lowered: its formula, and its kernel if it has one."""

    formula: Callable[..., list[Array]]
    kernel: Callable[..., list[Array]] | None

    def module(self, platform: str, context: Any, named: bool) -> ModuleType | None:
        """The kernels that serve this operation on a platform; an error where kernels were named and none do."""
        if self.kernel is None:
            return None
        module = _module(platform)
        features = context.avals_in[0].shape[-1]
        dtypes = {v.dtype for v in (*context.avals_in, *context.avals_out)}
        if named and not (module and module.serves(features, False, dtypes)):
            raise NotImplementedError(
                f"implementation='pallas' has kernels for cuda and tpu (but for float16), as far as this JAX compiles "
                f"them, and this program is compiled for {platform}, in {' and '.join(sorted(map(str, dtypes)))}. "
                f"Use implementation='xla', or None to have it chosen."
            )
        return module if module and module.serves(features, self.kernel is backward, dtypes) else None

    def lower(self, platform: str, context: Any, *values: Any, **params: Any) -> Any:
        """JAX calls this for an operation in a program for a platform."""
        formula, rows = partial(self.formula, **params), params["rows"]
        module = self.module(platform, context, rows.named)
        if module is None or self.kernel is None:
            return self.lowered(formula, context, *values)
        run = partial(self.kernel, module, **params)
        if platform == "tpu":
            # libtpu asks for no partitioning (jax#38196). Over several devices JAX's error says to use shard_map.
            return self.lowered(run, context, *values)
        # An export can't hold the partitioning, and JAX saves Triton's kernels for those alone who say that they know:
        # who has named none gets what can be saved.
        whole = run if rows.named else formula
        if getattr(context.module_context.lowering_parameters, "for_export", False):
            return self.lowered(whole, context, *values)
        primals = rows.cotangents(context.avals_in)[0] if self.kernel is backward else context.avals_in
        like_x = tuple(v.shape == context.avals_in[0].shape for v in context.avals_out)
        try:
            # ε, the last of the primals, lies along the axes that vectors lie along.
            return self.lowered(partial(by_shards, run, primals[-1].ndim - 1, like_x), context, *values)
        except AssertionError:
            # The devices are not known, as there was no way to ask for them: see `devices_known`.
            return self.lowered(whole, context, *values)

    def lowered(self, run: Callable[..., Any], context: Any, *values: Any) -> Any:
        """The operation, computed by a function of arrays."""
        with warnings.catch_warnings():
            # Pallas' Triton backend is deprecated. Where it is gone, the formula takes its place.
            warnings.filterwarnings("ignore", message="The Pallas Triton backend", category=DeprecationWarning)
            lowering = mlir.lower_fun(run, multiple_results=True)
            try:
                return lowering(context, *values)
            except RuntimeError as error:
                # Which GPU a program is for, JAX asks where none is at hand: our kernels are for any that has bfloat16.
                # Within a mesh, that is to say.
                if "AbstractDevice" not in str(error) or not jax.sharding.get_abstract_mesh().empty:
                    raise
                with jax.sharding.use_abstract_mesh(_H100):
                    return lowering(context, *values)


def register(
    operation: Primitive, formula: Callable[..., list[Array]], kernel: Callable[..., list[Array]] | None
) -> None:
    """The lowerings of an operation: its kernel where there is one, else its formula, where no kernel was named."""
    lowering = _Lowering(formula, kernel)
    if kernel is not None:
        devices_known(operation)
    mlir.register_lowering(operation, partial(lowering.lower, "cpu"))
    for platform in ("cuda", "tpu"):
        mlir.register_lowering(operation, partial(lowering.lower, platform), platform=platform)
