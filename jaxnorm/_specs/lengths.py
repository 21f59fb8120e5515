"""The norms that divide by a length or a deviation alone, and the one without statistics."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import ArrayLike

from jaxnorm import _checks, _functional
from jaxnorm._annotations import Axes, Names
from jaxnorm._specs.base import Norm
from jaxnorm._specs.fields import leaf
from jaxnorm._types import TanhAffine


class UnitNorm(Norm):
    """Vectors of length 1, `jn.unit_norm`; by default it learns nothing.

    y = x / √(ℓ² + ε),    ℓ = (Σ |x|^p)^(1/p),    p = `order`, the sum over `axis`

    Leaf: `epsilon`. The rest is static. params: `Affine` of the shape of the normalized axes, of None by default;
    state: None. Raises what `jn.unit_norm` does, when it is applied.

    Paper: Wang et al. 2017, "NormFace: L2 Hypersphere Embedding for Face Verification".

    >>> norm = jn.UnitNorm()
    >>> y, _ = norm.apply(*norm.init(2), jnp.array([[3.0, 4.0], [0.0, 0.0]]), train=True)
    >>> print(y.round(3))
    [[0.6 0.8]
     [0.  0. ]]
    """

    _verb = _functional.unit_norm

    use_scale: bool = False
    use_bias: bool = False
    axis: Axes = -1
    order: float = 2
    epsilon: ArrayLike = leaf(default=0.0)
    axis_name: Names | None = None


class SimpleNorm(Norm):
    """Division by the standard deviation, `jn.simple_norm` with its parameters: the mean stays.

    y = γ x / √(σ² n / (n − ddof) + ε),    σ² and n, the number of data, over `axis`

    Leaf: `epsilon`. The rest is static. params: `Affine` of the shape of the normalized axes; state: None. Raises what
    `jn.simple_norm` does, when it is applied.

    Paper: Ba, Kiros & Hinton 2016, "Layer Normalization", of which it leaves the centring out.

    >>> norm = jn.SimpleNorm()
    >>> y, _ = norm.apply(*norm.init(2), jnp.array([[4.0, 8.0]]), train=True)
    >>> print(y.round(3))
    [[2. 4.]]
    """

    _verb = _functional.simple_norm

    use_bias: bool = False
    axis: Axes = -1
    epsilon: ArrayLike = leaf(default=1e-6)
    ddof: int = 0
    axis_name: Names | None = None


class DynamicTanh(Norm):
    """Dynamic tanh, `jn.dynamic_tanh` with its parameters, in the place of layer norm.

    y = γ tanh(α x) + β

    Static; α begins at `initial_alpha`. params: `TanhAffine`, scale and bias of the shape of `axis` and a scalar;
    state: None. Raises what `jn.dynamic_tanh` does, when it is applied.

    Paper: Zhu et al. 2025, "Transformers without Normalization".

    >>> norm = jn.DynamicTanh()
    >>> y, _ = norm.apply(*norm.init(3), jnp.array([[-100.0, 0.0, 1.0]]), train=True)
    >>> print(y.round(3))
    [[-1.     0.     0.462]]
    """

    _verb = _functional.dynamic_tanh
    _params = TanhAffine
    _shared = ("alpha",)

    axis: Axes = -1
    initial_alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "initial_alpha", _checks.real_number(self.initial_alpha, "DynamicTanh: initial_alpha"))

    def _initial(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        return jnp.full((), self.initial_alpha, dtype) if name == "alpha" else super()._initial(name, shape, dtype)
