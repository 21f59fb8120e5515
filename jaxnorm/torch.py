"""PyTorch's norms and weights as ours, and back, bit for bit. PyTorch itself is not needed.

Conventions travel along: PyTorch's momentum is the weight of the new value, its running variance has ddof=1, and its
channels are axis 1. A `state_dict` is any mapping of names to arrays: of NumPy, of `safetensors.numpy.load_file`, or
tensors of PyTorch.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnorm import _checks
from jaxnorm._specs.base import Norm, Spec
from jaxnorm._specs.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from jaxnorm._trained.torch_models import dump_variables, load_variables, to_array
from jaxnorm._types import RunningStats

__all__ = ["dump_variables", "from_module", "from_state_dict", "load_variables", "spec", "to_state_dict"]

_BATCH = {"eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True, "bias": True}
_INSTANCE = _BATCH | {"affine": False, "track_running_stats": False}
_ARGUMENTS = {
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"), _BATCH),
    **dict.fromkeys(("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"), _INSTANCE),
    "GroupNorm": {"num_groups": None, "eps": 1e-5, "affine": True, "bias": True},
    "LayerNorm": {"normalized_shape": 1, "eps": 1e-5, "elementwise_affine": True, "bias": True},
    "RMSNorm": {"normalized_shape": 1, "eps": None, "elementwise_affine": True},
}
"""The arguments of PyTorch's constructors, with their defaults."""
_OF_NO_MATTER = ("num_features", "num_channels", "device", "dtype", "process_group")
_NAMES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
"""Our names, and PyTorch's."""


def __dir__() -> list[str]:
    return __all__


def spec(name: str, *, channel_axis: int = 1, **arguments: Any) -> Norm:
    """The spec of a norm of PyTorch, by its class and the arguments of its constructor.

    momentum = 1 − PyTorch's momentum,    ddof = 1,    epsilon = eps

    Args:
        name: `BatchNorm1d` to `3d`, `SyncBatchNorm`, `InstanceNorm1d` to `3d`, `LayerNorm`, `GroupNorm` or `RMSNorm`.
        channel_axis: of the data that it will be given: 1 as in PyTorch, -1 for channels last. Layer and RMS norm are
            over the last axes.
        arguments: by the names that PyTorch has for them, with its defaults; the number of features may be left out.

    Returns:
        A spec: shapes and dtypes are those of the data. An RMS norm with eps=None has that of float32.

    Raises:
        ValueError: there is no such norm. TypeError: it has no such argument.

    Paper: that of the norm.

    >>> jn.torch.spec("BatchNorm2d", momentum=0.1).momentum
    0.9
    """
    defaults = _checks.one_of(name, _ARGUMENTS, "torch.spec: there is no norm")
    for argument in arguments:
        _checks.one_of(argument, (*defaults, *_OF_NO_MATTER), f"torch.spec: {name} has no argument", TypeError)
    given = defaults | arguments
    if given.get("num_groups", 1) is None:
        raise TypeError(f"torch.spec: {name} lacks its argument num_groups.")
    epsilon = float(np.finfo(np.float32).eps) if given["eps"] is None else given["eps"]
    affine = given["affine"] if "affine" in given else given["elementwise_affine"]
    options = {"epsilon": epsilon, "use_scale": affine, "use_bias": affine and given.get("bias", False)}
    if name == "GroupNorm":
        return GroupNorm(groups=given["num_groups"], channel_axis=channel_axis, **options)
    if "normalized_shape" in given:
        axis = tuple(range(-np.size(given["normalized_shape"]), 0))
        return (RMSNorm if name == "RMSNorm" else LayerNorm)(axis=axis, **options)
    momentum = None if given["momentum"] is None else 1 - given["momentum"]
    options |= {"momentum": momentum, "ddof": 1, "channel_axis": channel_axis}
    if defaults is _INSTANCE:
        return InstanceNorm(track=given["track_running_stats"], **options)
    return BatchNorm(**options)


def from_module(module: Any, *, channel_axis: int = 1) -> tuple[Norm, Any, Any]:
    """The spec, parameters and state of a norm of PyTorch.

    spec, params, state = from_module(m)        m(x) = spec.apply(params, state, x, train=m.training)[0]

    Args:
        module: a norm of `torch.nn`, or anything of the same class name, attributes and `state_dict()`.
        channel_axis: as for `spec`.

    Returns:
        As `spec` and `from_state_dict` give them, of the shapes and dtypes of the module's. A batch norm that tracks
        nothing has state None, and is for training alone.

    Raises:
        ValueError: it is no norm that is known, or its arrays do not fit.

    Paper: that of the norm.

    >>> class LayerNorm:  # as torch.nn.LayerNorm(2)
    ...     normalized_shape, eps, elementwise_affine = (2,), 1e-6, True
    ...     def state_dict(self):
    ...         return {"weight": jnp.array([1.0, 2.0]), "bias": jnp.zeros(2)}
    >>> norm, params, _ = jn.torch.from_module(LayerNorm())
    >>> print(norm.epsilon, params.scale)
    1e-06 [1. 2.]
    """
    name = type(module).__name__
    defaults = _checks.one_of(name, _ARGUMENTS, "torch.from_module: there is no norm")
    arguments = {
        argument: getattr(module, argument) for argument in defaults if argument != "bias" and hasattr(module, argument)
    }
    arrays = module.state_dict()
    if "bias" in defaults:
        arguments["bias"] = "bias" in arrays
    norm = spec(name, channel_axis=channel_axis, **arguments)
    return norm, *_variables(norm, arrays, arguments.get("track_running_stats", True), name)


def from_state_dict(norm: Spec, state_dict: Mapping[str, Any], prefix: str = "") -> tuple[Any, Any]:
    """Parameters and state of a norm from the arrays that PyTorch has for it, bit for bit.

    scale = weight,  bias = bias,  mean = running_mean,  var = running_var,  weight_sum = num_batches_tracked

    Args:
        norm: a spec; that of `spec` trains on as PyTorch would. A `scale_offset` says that the weight was learnt as
            what differs from it: with 0, a weight is a scale.
        state_dict: arrays by name.
        prefix: what names begin with, as "layer1.0.bn1.".

    Returns:
        params and state as `norm.init` gives them, in the shapes and dtypes of the arrays.

    Raises:
        ValueError: arrays are missing, unexpected or of other shapes; all of them are named.

    Paper: that of the norm.

    >>> arrays = {"ln.weight": jnp.array([1.0, 2.0]), "ln.bias": jnp.zeros(2)}
    >>> params, _ = jn.torch.from_state_dict(jn.LayerNorm(), arrays, "ln.")
    >>> print(params.scale)
    [1. 2.]
    """
    found = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    return _variables(norm, found, True, prefix or type(norm).__name__)


def _variables(norm: Any, state_dict: Mapping[str, Any], tracks: bool, who: str) -> tuple[Any, Any]:
    """Parameters and state from arrays of these names; state None unless it `tracks`."""
    arrays = {key: to_array(value) for key, value in state_dict.items()}
    count = arrays.pop("num_batches_tracked", None)
    # Without any array, of the least size: what is missing is an error then, or nothing is.
    shape = next((v.shape for v in arrays.values()), (getattr(norm, "groups", 1),) * len(norm._axes))
    params, state = norm.init(shape)
    initial = params._asdict() | (state._asdict() if state is not None and tracks else {})
    wanted = {_NAMES[name]: v.shape for name, v in initial.items() if name in _NAMES and v is not None}
    _checks.arrays_fit({k: v.shape for k, v in arrays.items()}, wanted, f"torch.from_state_dict: {who}")
    found = {ours: jnp.asarray(arrays[theirs]) for ours, theirs in _NAMES.items() if theirs in arrays}
    params = params._replace(**{name: found[name] for name in ("scale", "bias") if name in found})
    if state is None or not tracks:
        return params, None
    weight_sum = None if state.weight_sum is None else jnp.full_like(state.weight_sum, 0 if count is None else count)
    return params, RunningStats(found["mean"], found["var"], weight_sum)


def to_state_dict(norm: Spec, params: Any, state: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays that PyTorch has for a norm, bit for bit.

    weight = scale,  bias = bias,  running_mean = mean,  running_var = var,  num_batches_tracked = weight_sum

    Args:
        norm, params, state: a spec, and what it has learnt.
        prefix: what names are to begin with.

    Returns:
        Arrays of NumPy by name, of the same shapes and dtypes: `module.load_state_dict` wants them as tensors, by
        `torch.from_numpy`; bfloat16 has no such way.

    Raises:
        TypeError: the norm learns or keeps something that PyTorch's have no name for.

    Paper: that of the norm.

    >>> norm = jn.LayerNorm()
    >>> jn.torch.to_state_dict(norm, *norm.init(2), prefix="ln.")
    {'ln.weight': array([1., 1.], dtype=float32), 'ln.bias': array([0., 0.], dtype=float32)}
    """
    every = params._asdict() | ({} if state is None else state._asdict())
    count = every.pop("weight_sum", None)
    if unknown := every.keys() - _NAMES.keys():
        raise TypeError(
            f"torch.to_state_dict: {type(norm).__name__} has {', '.join(sorted(unknown))}: PyTorch has no such norm."
        )
    arrays = {prefix + _NAMES[name]: np.asarray(v) for name, v in every.items() if v is not None}
    if state is not None:
        arrays[f"{prefix}num_batches_tracked"] = np.array(0 if count is None else np.max(count), np.int64)
    return arrays
