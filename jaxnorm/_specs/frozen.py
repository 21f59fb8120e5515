"""Norms that stay as they are deployed, whatever training says."""

import dataclasses
from typing import Any

from jax import lax
from jaxtyping import ArrayLike, DTypeLike

from jaxnorm import _checks
from jaxnorm._annotations import Axes, Data, Result
from jaxnorm._specs.base import Spec, Value
from jaxnorm._specs.fields import leaf
from jaxnorm._types import Recalibrating, plain, uncounted


class FrozenNorm(Value):
    """A norm that is applied as in evaluation, also in training; `jn.freeze` makes it.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² running statistics, which stay as they are

    Leaves: those of the norm in it, `spec`. `trained` is static: whether gradients reach scale and bias. What else it
    is asked for, `epsilon` or `channel_axis`, is that of the norm; so are shapes and dtypes. Raises what the norm does.
    Paper: that of the norm.

    >>> jn.freeze(jn.BatchNorm(), trained=True).epsilon
    1e-05
    """

    spec: Any = leaf()
    trained: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.spec(self.spec, "FrozenNorm")

    def __getattr__(self, name: str) -> Any:
        # Copies and unpickled ones are asked for special names before they have a spec.
        if name.startswith("__") or name == "spec":
            raise AttributeError(name)
        return getattr(self.spec, name)

    def init(self, features: Axes, param_dtype: DTypeLike | None = None) -> tuple[Any, Any]:
        """Parameters and state as the norm in it has them."""
        return self.spec.init(features, param_dtype)

    @property
    def features(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The method of the norm in it that says which features `init` wants, if it has one."""
        return self.spec.features

    def apply(
        self, params: Any, state: Any, x: Data, *, train: bool, where: ArrayLike | None = None
    ) -> tuple[Result, Any]:
        """The normalized `x`, and the state as it was. `train` has no effect."""
        _checks.train(train, "FrozenNorm")
        params = params if self.trained else lax.stop_gradient(params)
        kept = state
        if isinstance(state, Recalibrating):
            state, kept = plain(state), state._replace(seen=uncounted(state.seen))
        return self.spec.apply(params, state, x, train=False, where=where)[0], kept


def freeze(spec: Spec, *, trained: bool = False) -> FrozenNorm:
    """The norm as it is deployed: by its running statistics, which stay, whatever `train` says.

    y = γ (x − μ) / √(σ² + ε) + β,    μ and σ² running statistics,    ∂y/∂γ = ∂y/∂β = 0 unless `trained`

    For a part of a network that is fine-tuned on small batches, or not at all. It has the leaves, the parameters and
    the state of the norm, needs no mutable collection in Flax, and `jn.recalibrate` leaves it alone. Its `spec` is the
    norm as it was. Norms without a state do what they did; their scale and bias are frozen. An optimizer may decay a
    weight without any gradient: mask it out (docs/after_training.md).

    Args:
        spec: any `jn.Spec`.
        trained: whether gradients reach the scale and the bias.

    Returns:
        A spec. Gradients reach `x`, of any shape and dtype that the norm takes.

    Raises:
        TypeError: it is no spec.

    Paper: Ren et al. 2015, "Faster R-CNN", as He et al. 2016, "Deep Residual Learning for Image Recognition", train it.

    >>> bn = jn.freeze(jn.BatchNorm())
    >>> params, state = bn.init(1)
    >>> y, same = bn.apply(params, state, jnp.array([[2.0]]), train=True)
    >>> print(y.round(3), same is state)
    [[2.]] True
    """
    _checks.spec(spec, "freeze")
    norm = spec.spec if isinstance(spec, FrozenNorm) else spec
    return FrozenNorm(spec=norm, trained=trained)


def unsynced(spec: Any) -> Any:
    """The norm of this device alone: where it is initialised, mapped axes are not bound."""
    if isinstance(spec, FrozenNorm):
        return dataclasses.replace(spec, spec=unsynced(spec.spec))
    return dataclasses.replace(spec, axis_name=None) if getattr(spec, "axis_name", None) is not None else spec
