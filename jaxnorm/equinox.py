"""Any spec as an Equinox module; Equinox is loaded with this module, at first use."""

from typing import Any

import equinox as eqx
from jaxtyping import ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Axes, Data
from jaxnorm._specs.base import Spec
from jaxnorm._types import with_given

__all__ = ["Norm"]


def __dir__() -> list[str]:
    return __all__


class Norm(eqx.nn.StatefulLayer):
    """A norm as a layer: its parameters as a field, its state behind an index, as that of `eqx.nn.BatchNorm`.

    y, state = spec.apply(params, state, x, train=not inference, where=where)

    Norm(spec, features, *, inference=False, param_dtype=float32). It takes a batch, or an example under `jax.vmap`,
    where the spec says that (`jn.BatchNorm(channel_axis=0, axis_name="batch")`). `eqx.nn.inference_mode` flips
    `inference`, and `eqx.nn.Sequential` calls it. Numbers of the spec are static for `eqx.filter_jit` where they are
    Python's; arrays in it an optimizer would train.

    `__call__(x, state=None, *, key=None, inference=None, where=None, scale=None, bias=None)` returns y, of the shape of
    `x`, and the state; y alone where a norm without state is given none. A scale or bias in the call is for specs with
    `use_scale=False` or `use_bias=False`. Raises ValueError where a norm with a state is given none, and what the spec
    raises. Paper: that of the spec.

    >>> import equinox as eqx
    >>> norm, state = eqx.nn.make_with_state(jn.equinox.Norm)(jn.BatchNorm(momentum=0.9), 2)
    >>> y, state = norm(jnp.array([[1.0, 10.0], [3.0, 30.0]]), state)
    >>> print(state.get(norm.state_index).mean.round(3))
    [0.2 2. ]
    """

    spec: Spec
    params: Any
    state_index: eqx.nn.StateIndex | None
    inference: bool

    def __init__(self, spec: Spec, features: Axes, *, inference: bool = False, param_dtype: DTypeLike | None = None):
        _checks.spec(spec, "equinox.Norm")
        self.spec, self.inference = spec, inference
        self.params, state = spec.init(features, param_dtype)
        self.state_index = None if state is None else eqx.nn.StateIndex(state)

    def is_stateful(self) -> bool:
        return self.state_index is not None

    def __call__(
        self, x: Data, state: eqx.nn.State | None = None, *, key: Any = None, inference: bool | None = None,
        where: ArrayLike | None = None, scale: ArrayLike | None = None, bias: ArrayLike | None = None,
    ) -> Any:  # fmt: skip
        who = "equinox.Norm"
        _checks.given_twice(self.spec, who, scale=scale, bias=bias)
        inference = _checks.flag(self.inference if inference is None else inference, who, "inference")
        params = with_given(self.params, scale=scale, bias=bias)
        if self.state_index is None:
            y, _ = self.spec.apply(params, None, x, train=not inference, where=where)
            return y if state is None else (y, state)
        if state is None:
            raise ValueError(f"{who}: {type(self.spec).__name__} has a state: give it, y, state = norm(x, state).")
        old: Any = state.get(self.state_index)
        y, new = self.spec.apply(params, old, x, train=not inference, where=where)
        return y, state if new is old else state.set(self.state_index, new)
