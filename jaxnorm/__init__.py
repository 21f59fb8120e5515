"""Normalization for JAX: accurate statistics, pure functions, parameters and state as pytrees."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

from jax import export as _export

from jaxnorm._functional import (
    adaptive_instance_norm,
    add_layer_norm,
    add_rms_norm,
    batch_norm,
    batch_renorm,
    dynamic_tanh,
    evo_norm_b0,
    evo_norm_s0,
    filter_response_norm,
    global_response_norm,
    group_norm,
    instance_norm,
    layer_norm,
    local_response_norm,
    rms_norm,
    simple_norm,
    spectral_norm,
    standardize_weights,
    unit_norm,
    weight_norm,
)
from jaxnorm._specs.base import Spec
from jaxnorm._specs.between import BatchInstanceNorm, BatchRenorm, SwitchableNorm
from jaxnorm._specs.config import from_dict, to_dict
from jaxnorm._specs.evo import EvoNormB0, EvoNormS0
from jaxnorm._specs.fields import leaf
from jaxnorm._specs.frozen import FrozenNorm, freeze
from jaxnorm._specs.lengths import DynamicTanh, SimpleNorm, UnitNorm
from jaxnorm._specs.norms import BatchNorm, GroupNorm, Identity, InstanceNorm, LayerNorm, RMSNorm
from jaxnorm._specs.responses import FilterResponseNorm, GlobalResponseNorm, LocalResponseNorm
from jaxnorm._specs.scaler import FeatureScaler
from jaxnorm._state.accumulate import accumulate, commit, merge_running
from jaxnorm._state.inspect import inspect
from jaxnorm._state.moments import merge, moments
from jaxnorm._state.recalibrate import recalibrate
from jaxnorm._state.update import update_running
from jaxnorm._trained.export import portable
from jaxnorm._trained.fold import fold
from jaxnorm._types import (
    Accumulating,
    Affine,
    EvoAffine,
    GatedAffine,
    Inspection,
    Moments,
    Recalibrating,
    RunningStats,
    SingularVectors,
    SwitchableAffine,
    TanhAffine,
    ThresholdedAffine,
)

if _TYPE_CHECKING:
    from jaxnorm import equinox as equinox
    from jaxnorm import haiku as haiku
    from jaxnorm import inspection, linen, nnx, torch

__version__ = "0.2.0"
__all__ = [
    "Accumulating", "Affine", "BatchInstanceNorm", "BatchNorm", "BatchRenorm", "DynamicTanh", "EvoAffine",
    "EvoNormB0", "EvoNormS0", "FeatureScaler", "FilterResponseNorm", "FrozenNorm", "GatedAffine",
    "GlobalResponseNorm", "GroupNorm", "Identity", "Inspection", "InstanceNorm", "LayerNorm", "LocalResponseNorm",
    "Moments", "RMSNorm", "Recalibrating", "RunningStats", "SimpleNorm", "SingularVectors", "Spec",
    "SwitchableAffine", "SwitchableNorm", "TanhAffine", "ThresholdedAffine", "UnitNorm", "accumulate",
    "adaptive_instance_norm", "add_layer_norm", "add_rms_norm", "batch_norm", "batch_renorm", "commit",
    "dynamic_tanh", "evo_norm_b0", "evo_norm_s0", "filter_response_norm", "fold", "freeze", "from_dict",
    "global_response_norm", "group_norm", "inspect", "inspection", "instance_norm", "layer_norm", "leaf", "linen",
    "local_response_norm", "merge", "merge_running", "moments", "nnx", "portable", "recalibrate", "rms_norm",
    "simple_norm", "spectral_norm", "standardize_weights", "to_dict", "torch", "unit_norm", "update_running",
    "weight_norm",
]  # fmt: skip


# Pickles and exported programs carry these names: they stay when a file gets another one.
for _class in (
    Accumulating, Affine, EvoAffine, GatedAffine, Inspection, Moments, Recalibrating, RunningStats, SingularVectors,
    SwitchableAffine, TanhAffine, ThresholdedAffine,
):  # fmt: skip
    _export.register_namedtuple_serialization(_class, serialized_name=f"jaxnorm.{_class.__name__}")
for _class in [_public for _public in map(globals().get, __all__) if isinstance(_public, type)]:
    _class.__module__ = "jaxnorm"


_LIBRARIES = {"equinox": "equinox", "haiku": "dm-haiku"}


def __getattr__(name: str) -> object:
    # Adapters import their library, which takes longer than all else here: at first use (PEP 562). Nothing imports
    # PyTorch.
    if name not in ("inspection", "linen", "nnx", "torch", *_LIBRARIES):
        raise AttributeError(f"module 'jaxnorm' has no attribute {name!r}")
    try:
        return _import_module(f"jaxnorm.{name}")
    except ModuleNotFoundError as error:
        if error.name == name:
            error.add_note(f"jaxnorm.{name} is for users of that library: pip install {_LIBRARIES[name]}.")
        raise


def __dir__() -> list[str]:
    return __all__
