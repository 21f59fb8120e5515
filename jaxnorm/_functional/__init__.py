"""The verbs: `jn.batch_norm` and its kin, and those that specs alone offer."""

from jaxnorm._functional.evo import evo_norm_b0, evo_norm_s0
from jaxnorm._functional.lengths import dynamic_tanh, simple_norm, unit_norm
from jaxnorm._functional.normalize import normalize, normalize_tracking
from jaxnorm._functional.renorm import batch_renorm
from jaxnorm._functional.residual import add_layer_norm, add_rms_norm
from jaxnorm._functional.responses import filter_response_norm, global_response_norm, local_response_norm
from jaxnorm._functional.stateless import affine, group_norm, instance_norm, layer_norm, rms_norm
from jaxnorm._functional.style import adaptive_instance_norm
from jaxnorm._functional.switchable import switchable_norm
from jaxnorm._functional.tracking import batch_instance_norm, batch_norm, instance_norm_tracking
from jaxnorm._functional.weights import spectral_norm, standardize_weights, weight_norm

__all__ = [
    "adaptive_instance_norm", "add_layer_norm", "add_rms_norm", "affine", "batch_instance_norm", "batch_norm",
    "batch_renorm", "dynamic_tanh", "evo_norm_b0", "evo_norm_s0", "filter_response_norm", "global_response_norm",
    "group_norm", "instance_norm", "instance_norm_tracking", "layer_norm", "local_response_norm", "normalize",
    "normalize_tracking", "rms_norm", "simple_norm", "spectral_norm", "standardize_weights", "switchable_norm",
    "unit_norm", "weight_norm",
]  # fmt: skip
