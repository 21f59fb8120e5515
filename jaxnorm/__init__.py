"""Normalization for JAX: accurate statistics, pure functions, parameters and state as pytrees."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

from jax import export as _export

from jaxnorm._functional import (
    add_layer_norm,
    add_rms_norm,
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from jaxnorm._specs.base import Spec, leaf
from jaxnorm._specs.config import from_dict, to_dict
from jaxnorm._specs.frozen import FrozenNorm, freeze
from jaxnorm._specs.norms import BatchInstanceNorm, BatchNorm, GroupNorm, Identity, InstanceNorm, LayerNorm, RMSNorm
from jaxnorm._specs.scaler import FeatureScaler
from jaxnorm._state.accumulate import accumulate, commit, merge_running
from jaxnorm._state.inspect import inspect
from jaxnorm._state.moments import merge, moments
from jaxnorm._state.recalibrate import recalibrate
from jaxnorm._state.update import update_running
from jaxnorm._trained.export import portable
from jaxnorm._trained.fold import fold
from jaxnorm._types import Accumulating, Affine, GatedAffine, Inspection, Moments, Recalibrating, RunningStats

if _TYPE_CHECKING:
    from jaxnorm import inspection, linen, nnx, torch

__version__ = "0.1.0"
__all__ = [
    "Accumulating", "Affine", "BatchInstanceNorm", "BatchNorm", "FeatureScaler", "FrozenNorm", "GatedAffine",
    "GroupNorm", "Identity", "Inspection", "InstanceNorm", "LayerNorm", "Moments", "RMSNorm", "Recalibrating",
    "RunningStats", "Spec", "accumulate", "add_layer_norm", "add_rms_norm", "batch_norm", "commit", "fold",
    "freeze", "from_dict", "group_norm", "inspect", "inspection", "instance_norm", "layer_norm", "leaf", "linen",
    "merge", "merge_running", "moments", "nnx", "portable", "recalibrate", "rms_norm", "to_dict", "torch",
    "update_running",
]  # fmt: skip


# Pickles and exported programs carry these names: they stay when a file gets another one.
for _class in (Accumulating, Affine, GatedAffine, Inspection, Moments, Recalibrating, RunningStats):
    _export.register_namedtuple_serialization(_class, serialized_name=f"jaxnorm.{_class.__name__}")
for _class in [_public for _public in map(globals().get, __all__) if isinstance(_public, type)]:
    _class.__module__ = "jaxnorm"


def __getattr__(name: str) -> object:
    # The adapters import Flax, which takes longer than all else here: at first use (PEP 562). Nothing imports PyTorch.
    if name in ("inspection", "linen", "nnx", "torch"):
        return _import_module(f"jaxnorm.{name}")
    raise AttributeError(f"module 'jaxnorm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
