"""Layers of nnx whose weights are normalized before they are used; their parameters stay what they are."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.errors import TraceContextError
from jaxtyping import Array

from jaxnorm import _checks
from jaxnorm._flax.weights import is_spectral, spectral_weights, standardized_kernel, weights_of_length


class SpectralNorm(nnx.SpectralNorm):
    """`flax.nnx.SpectralNorm`, which leaves the weights of the layer alone. Paper: Miyato et al. 2018.

    ŵ = w / σ,    σ = uᵀ W v the largest singular value, by `n_steps` of power iteration
    The layer within gives y by ŵ; its weights have shape (…, outputs). `batch_stats` has u and σ of each, written in
    training or with `update_stats=True`. Raises ValueError where weights have more than two axes, and
    `error_on_non_matrix`.
    `epsilon` has no effect: weights of 0 need none.

    >>> layer = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))
    >>> layer.kernel[...] = jnp.array([[3.0, 0.0], [0.0, 1.5]])
    >>> norm = jn.nnx.SpectralNorm(layer, n_steps=20, rngs=nnx.Rngs(0))
    >>> print(norm(jnp.eye(2)).round(3), layer.kernel[0, 0])
    [[1.  0. ]
     [0.  0.5]] 3.0
    """

    def __call__(self, x: Array, update_stats: bool | None = None, **kwargs: Any) -> Any:
        if update_stats is None:
            update_stats = not self.use_running_average
        update_stats = _checks.flag(update_stats, "SpectralNorm", "update_stats")
        changed = []
        for path, w in nnx.to_flat_state(nnx.state(self.layer_instance, nnx.Param)):
            if not is_spectral(self, w):
                continue
            u, sigma = (self.batch_stats[(*path, name)] for name in ("u", "sigma"))
            weights, *found = spectral_weights(self, w[...], u[...])
            changed.append((w, weights))
            if update_stats:
                u[...], sigma[...] = found
        with _weights(self.layer_instance, changed) as layer:
            return layer(x, **kwargs)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """For `nnx.view`.

        Args:
          use_running_average: evaluation.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


class WeightNorm(nnx.WeightNorm):
    """`flax.nnx.WeightNorm`, whose scales train and which leaves the weights alone. Paper: Salimans & Kingma 2016.

    ŵ = γ w / √(‖w‖² + ε),    the norm over all axes but `feature_axes`
    The layer within gives y by ŵ; γ has the shape of these axes, an `nnx.Param` in `scales` for each. Raises TypeError
    or ValueError where an argument does not fit the weights.

    >>> layer = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
    >>> layer.kernel[...] = jnp.array([[3.0], [4.0]])
    >>> norm = jn.nnx.WeightNorm(layer, rngs=nnx.Rngs(0))
    >>> print(norm(jnp.eye(2)).round(3).T, layer.kernel[...].T)
    [[0.6 0.8]] [[3. 4.]]
    """

    def __init__(self, *args: Any, scale_init: nnx.Initializer = nnx.initializers.ones, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.scale_init = scale_init
        if self.scales is None:
            return
        # As in Flax, no key is drawn for ones.
        key: Any = (lambda: None) if scale_init is nnx.initializers.ones else kwargs["rngs"].params
        scales = {path: scale_init(key(), scale.shape, self.param_dtype) for path, scale in self.scales.items()}
        self.scales = nnx.data({path: nnx.Param(scale) for path, scale in scales.items()})

    def __call__(self, x: Array, *args: Any, **kwargs: Any) -> Any:
        changed = []
        for path, w in nnx.to_flat_state(nnx.state(self.layer_instance, nnx.Param)):
            if self.variable_filter(path, w):
                scale = None if self.scales is None else self.scales[path][...]
                changed.append((w, weights_of_length(self, w[...], scale)))
        with _weights(self.layer_instance, changed) as layer:
            return layer(x, *args, **kwargs)


class StdConv(nnx.Conv):
    """`flax.nnx.Conv` by standardized weights.

    ŵ = (w − μ) / √(σ² + ε),    or, if `scaled`, ŵ = gain (w − μ) / √(N (σ² + ε)),    μ and σ² of an output's N weights

    StdConv(in_features, out_features, kernel_size, …, rngs, epsilon=1e-6, scaled=False), all else as `nnx.Conv`. The
    kernel is a parameter as there, of shape (…, inputs, outputs), and `gain`, if `scaled`, one of shape (outputs,).
    Raises what `nnx.Conv` does. Papers: Qiao et al. 2019, "Weight Standardization"; Brock, De & Smith 2021,
    "Characterizing signal propagation to close the performance gap in unnormalized ResNets".

    >>> layer = jn.nnx.StdConv(1, 1, (2,), padding="VALID", use_bias=False, rngs=nnx.Rngs(0))
    >>> layer.kernel[...] = jnp.array([[[1.0]], [[5.0]]])
    >>> print(layer(jnp.array([[[1.0], [2.0], [4.0]]])).squeeze().round(3))
    [1. 2.]
    """

    def __init__(self, *args: Any, epsilon: float = 1e-6, scaled: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.epsilon, self.scaled = epsilon, scaled
        if scaled:
            self.gain = nnx.Param(jnp.ones(self.out_features, self.param_dtype))

    def __call__(self, inputs: Array, *args: Any, **kwargs: Any) -> Array:
        gain = self.gain[...] if self.scaled else None
        kernel = standardized_kernel(self, self.kernel[...], gain)
        with _weights(self, [(self.kernel, kernel)]) as layer:
            return nnx.Conv.__call__(layer, inputs, *args, **kwargs)


@contextmanager
def _weights(layer: Any, weights: Sequence[tuple[nnx.Variable, Array]]) -> Iterator[Any]:
    """A layer whose variables have other values in the time of a call; all else that it writes stays.

    Where variables may not be written, as in a function that closes over the layer, it is a copy of it.
    """
    before = []
    try:
        for variable, value in weights:
            old = variable.get_value()
            variable.set_value(value)
            before.append((variable, old))
    except TraceContextError:
        layer = _copy(layer, {id(variable): variable.replace(value) for variable, value in weights})
        _restore(before)
        before = []
    try:
        yield layer
    finally:
        _restore(before)


def _restore(values: Iterable[tuple[nnx.Variable, Any]]) -> None:
    for variable, value in values:
        variable.set_value(value)


def _copy(layer: Any, others: Mapping[int, nnx.Variable]) -> Any:
    """A layer with other variables in the place of some, wherever these are, and with the rest in common."""
    copy = nnx.clone(layer, variables=False)
    for _, part in nnx.iter_modules(copy):
        for name, value in dict(vars(part)).items():
            if id(value) in others:
                setattr(part, name, others[id(value)])
    return copy
