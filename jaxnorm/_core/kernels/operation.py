"""An operation of one's own: a formula for every platform, kernels for some, and derivatives that are the formula's."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching
from jaxtyping import Array

from jaxnorm._core.barriers import batch_in_front
from jaxnorm._core.kernels import platforms


def operation(
    name: str, formula: Callable[..., list[Array]], kernel: Callable[..., list[Array]] | None = None
) -> Primitive:
    """A primitive that computes a formula of arrays and of keywords that are static, or has a kernel compute it.

    Its leading axes are ones that everything may be mapped over. Its results are a list.
    """
    primitive = Primitive(f"jaxnorm_{name}")
    primitive.multiple_results = True

    @lru_cache(maxsize=256)
    def abstract(avals: Any, params: Any) -> Any:
        # That of the formula: its sharding, and how it varies over a mesh.
        return jax.make_jaxpr(partial(formula, **dict(params)))(*avals).out_avals

    @lru_cache(maxsize=256)
    def program(params: Any) -> Callable[..., Any]:
        return jax.jit(partial(primitive.bind, **dict(params)))

    def batch(args: Any, axes: Any, **params: Any) -> Any:
        found = primitive.bind(*batch_in_front(args, axes), **params)
        return found, [0] * len(found)

    def derivative(primals: Any, tangents: Any, **params: Any) -> Any:
        tangents = [ad.instantiate_zeros(t) for t in tangents]
        return jax.jvp(partial(formula, **params), tuple(primals), tuple(tangents))

    primitive.def_impl(lambda *args, **params: program(tuple(params.items()))(*args))
    primitive.def_abstract_eval(lambda *avals, **params: abstract(avals, tuple(params.items())))
    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = derivative
    platforms.register(primitive, formula, kernel)
    return primitive


def transposed(primitive: Primitive, rule: Callable[..., Sequence[Array | None]]) -> None:
    """Gives an operation, linear in its last arguments, its transpose.

    The rule takes the cotangents of results, None for one that is zero, and all arguments that are no tangents. It
    gives a cotangent for each that is one, or None.
    """

    def transpose(cotangents: Any, *args: Any, nonzero: tuple[bool, ...], **params: Any) -> list[Any]:
        primals, tangents = args[: len(args) - sum(nonzero)], args[len(args) - sum(nonzero) :]
        cotangents = [None if isinstance(g, ad.Zero) else g for g in cotangents]
        if all(g is None for g in cotangents):
            return [None] * len(args)
        found = rule(cotangents, *primals, nonzero=nonzero, **params)
        return [None] * len(primals) + [
            v.astype(t.aval.dtype) if v is not None and ad.is_undefined_primal(t) else None
            for v, t in zip(found, tangents, strict=True)
        ]

    ad.primitive_transposes[primitive] = transpose
