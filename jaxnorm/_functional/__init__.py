"""The verbs: `jn.batch_norm` and its kin, and those that specs alone offer."""

from jaxnorm._functional.normalize import normalize, normalize_tracking
from jaxnorm._functional.residual import add_layer_norm, add_rms_norm
from jaxnorm._functional.stateless import affine, group_norm, instance_norm, layer_norm, rms_norm
from jaxnorm._functional.tracking import batch_instance_norm, batch_norm, instance_norm_tracking

__all__ = [
    "add_layer_norm", "add_rms_norm", "affine", "batch_instance_norm", "batch_norm", "group_norm", "instance_norm",
    "instance_norm_tracking", "layer_norm", "normalize", "normalize_tracking", "rms_norm",
]  # fmt: skip
