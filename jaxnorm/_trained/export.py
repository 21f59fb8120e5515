"""Networks for converters to other formats."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from jaxnorm import _checks
from jaxnorm._core.portable import portable_programs

Function = TypeVar("Function", bound=Callable[..., Any])


def portable(function: Function) -> Function:
    """The function with shorter programs, in operations that converters to other formats know, as ONNX or TFLite.

    portable(f)(x) = f(x), but for rounding

    For what a network is deployed with, not for training: there are no choices by platform or by the size of the data,
    no loops in evaluation and no operations of our own. Layer, instance and group norm take two sums about each mean
    where they would choose what is fastest on a device. Statistics are as accurate as else, and so are derivatives.

    Args:
        function: of arrays of any shapes and dtypes, that calls norms in any way, as a model's `apply`. What was
            compiled of it before does not matter; `jax.jit` belongs around `portable`, or within.

    Returns:
        A function of the same arguments and results.

    Raises:
        TypeError: it is a generator, or no function.

    Paper: none.

    >>> x = jnp.arange(6.0).reshape(2, 3)
    >>> len(str(jax.make_jaxpr(jn.portable(jn.layer_norm))(x))) < len(str(jax.make_jaxpr(jn.layer_norm)(x))) / 3
    True
    """

    _checks.runs_when_called(function, "portable")

    @wraps(function)
    def of_operations(*args: Any, **kwargs: Any) -> Any:
        with portable_programs():
            return function(*args, **kwargs)

    return of_operations  # pyright: ignore[reportReturnType]
