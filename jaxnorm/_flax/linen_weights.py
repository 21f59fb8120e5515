"""Layers of linen whose weights are normalized before they are used."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from jaxnorm import _checks
from jaxnorm._flax.weights import is_spectral, scale_shape, spectral_weights, standardized_kernel, weights_of_length


class SpectralNorm(nn.SpectralNorm):
    """`flax.linen.SpectralNorm`, for weights of 0 and NaN, too. Paper: Miyato et al. 2018.

    ŵ = w / σ,    σ = uᵀ W v the largest singular value, by `n_steps` of power iteration
    The layer within gives y by ŵ; its weights have shape (…, outputs). `batch_stats` has u and σ of each, written with
    `update_stats=True`. Raises ValueError where weights have more than two axes, and `error_on_non_matrix`.
    `epsilon` has no effect: weights of 0 need none.

    >>> layer = jn.linen.SpectralNorm(nn.Dense(2, use_bias=False), n_steps=20)
    >>> x = jnp.eye(2)
    >>> variables = {**layer.init(jax.random.key(0), x, update_stats=False)}
    >>> variables["params"] = {"layer_instance": {"kernel": jnp.array([[3.0, 0.0], [0.0, 1.5]])}}
    >>> print(layer.apply(variables, x, update_stats=False).round(3))
    [[1.  0. ]
     [0.  0.5]]
    """

    @nn.compact
    def __call__(self, *args: Any, update_stats: bool, **kwargs: Any) -> Any:
        update_stats = _checks.flag(update_stats, "SpectralNorm", "update_stats")

        def normalized(path: Any, w: Array) -> Array:
            if not is_spectral(self, w):
                return w
            name, key = _place(self.layer_instance, path), None
            if not self.has_variable(self.collection_name, f"{name}/u"):
                key = self.make_rng("params")
            u = self.variable(
                self.collection_name, f"{name}/u", jax.random.normal, key, (1, w.shape[-1]), self.param_dtype
            )
            sigma = self.variable(self.collection_name, f"{name}/sigma", jnp.ones, (), self.param_dtype)
            y, *found = spectral_weights(self, w, u.value)
            if update_stats:
                u.value, sigma.value = found
            return y

        return _with_weights(self, normalized, args, kwargs)


class WeightNorm(nn.WeightNorm):
    """`flax.linen.WeightNorm`, for weights of 0, too. Paper: Salimans & Kingma 2016.

    ŵ = γ w / √(‖w‖² + ε),    the norm over all axes but `feature_axes`
    The layer within gives y by ŵ; γ has the shape of these axes and is a parameter of this module. Raises TypeError or
    ValueError where an argument does not fit the weights.

    >>> layer = jn.linen.WeightNorm(nn.Dense(1, use_bias=False))
    >>> x = jnp.eye(2)
    >>> params = layer.init(jax.random.key(0), x)["params"]
    >>> params = {**params, "layer_instance": {"kernel": jnp.array([[3.0], [4.0]])}}
    >>> print(layer.apply({"params": params}, x).round(3).T)
    [[0.6 0.8]]
    """

    @nn.compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        def normalized(path: Any, w: Array) -> Array:
            w, name = jnp.asarray(w), _place(self.layer_instance, path)
            if self.variable_filter and not any(part in name for part in self.variable_filter):
                return w
            scale = None
            if self.use_scale:
                name = _scale_name(self, path, name)
                scale = self.param(name, self.scale_init, scale_shape(self, w), self.param_dtype)
            return weights_of_length(self, w, scale)

        return _with_weights(self, normalized, args, kwargs)


class StdConv(nn.Conv):
    """`flax.linen.Conv` by standardized weights.

    ŵ = (w − μ) / √(σ² + ε),    or, if `scaled`, ŵ = gain (w − μ) / √(N (σ² + ε)),    μ and σ² of an output's N weights

    The kernel is a parameter as that of `nn.Conv`, of shape (…, inputs, outputs), and `gain`, if `scaled`, one of shape
    (outputs,). Raises what `nn.Conv` does. Papers: Qiao et al. 2019, "Weight Standardization"; Brock, De & Smith 2021,
    "Characterizing signal propagation to close the performance gap in unnormalized ResNets".

    >>> layer = jn.linen.StdConv(1, (2,), padding="VALID", use_bias=False)
    >>> params = {"kernel": jnp.array([[[1.0]], [[5.0]]])}
    >>> print(layer.apply({"params": params}, jnp.array([[[1.0], [2.0], [4.0]]])).squeeze().round(3))
    [1. 2.]
    """

    epsilon: float = dataclasses.field(default=1e-6, kw_only=True)
    scaled: bool = dataclasses.field(default=False, kw_only=True)

    def param(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """The parameter of this name; of a kernel, its standardized form."""
        value = super().param(name, *args, **kwargs)
        if name != "kernel":
            return value
        gain = super().param("gain", nn.initializers.ones, value.shape[-1:], self.param_dtype) if self.scaled else None
        return standardized_kernel(self, value, gain)


def _place(layer: nn.Module, path: Any) -> str:
    """Where a weight is, as Flax's wrappers name what belongs to it; a box around it is no part of that."""
    names = [key.key for key in path[1:] if isinstance(key, jax.tree_util.DictKey)]
    return "/".join([str(layer.name), *names])


def _scale_name(norm: nn.Module, path: Any, place: str) -> str:
    """The name of a scale: Flax has the box of a weight in it where there is one, and a checkpoint may be without."""
    boxed = not isinstance(path[-1], jax.tree_util.DictKey)
    names = [f"{place}/value/scale", f"{place}/scale"][:: 1 if boxed else -1]
    return next((name for name in names if norm.has_variable("params", name)), names[0])


def _with_weights(module: Any, weights: Callable[[Any, Array], Array], args: Any, kwargs: Any) -> Any:
    """The layer within, called with other weights; its parameters stay what they are, also where they are mutable."""
    before: Any = None

    def normalized(variables: Any) -> Any:
        nonlocal before
        before = variables
        return jax.tree_util.tree_map_with_path(weights, variables)

    return nn.map_variables(
        lambda layer: layer(*args, **kwargs),
        "params",
        trans_in_fn=normalized,
        # Flax begins with normalized weights, and so do checkpoints of a start.
        trans_out_fn=lambda variables: variables if module.is_initializing() else before,
        init=module.is_initializing(),
        mutable=True,
    )(module.layer_instance)
