"""Messages about arguments and states: at trace time, with the fact, the value and the remedy.

A check is named for what it looks at. It raises where that does not fit, and gives back what the caller goes on with.
`who` is the function or class that the user called.
"""

from jaxnorm._checks.arguments import (
    affine,
    axes,
    axis,
    channel_axis,
    data,
    ddof,
    divides,
    in_other_words,
    known,
    momentum,
    names,
    number,
    one_of,
    positions,
    residual,
    several_axes,
    unbiased,
    virtual_batch_size,
    weights,
    where,
)  # fmt: skip
from jaxnorm._checks.arrays import arrays_fit, meet_once
from jaxnorm._checks.flags import field_flag, flag, ignored_flag, mode, train, training
from jaxnorm._checks.folding import folds, layer_bias, layer_of, real_beside, unpadded
from jaxnorm._checks.functions import runs_when_called
from jaxnorm._checks.modules import given_twice, key, same_features, spec, spec_classes
from jaxnorm._checks.outputs import dtype, implementation, output_dtype, real_number, scale_offset, without_kernels
from jaxnorm._checks.special import (
    given,
    more_data,
    needs_state,
    order,
    real,
    same_style,
    singular_vectors,
    steps,
    window,
)
from jaxnorm._checks.specs import (
    clips,
    fits_norm,
    fits_scaler,
    normalized_shape,
    ordered,
    param_dtype,
    same_entries,
    stateless,
)  # fmt: skip
from jaxnorm._checks.states import (
    averages,
    parts,
    reject_nnx_variables,
    require_data,
    require_stats,
    running,
    same_channels,
    saw_data,
    several,
    shares,
)  # fmt: skip

__all__ = [
    "affine", "arrays_fit", "averages", "axes", "axis", "channel_axis", "clips", "data", "ddof", "divides", "dtype",
    "field_flag", "fits_norm", "fits_scaler", "flag", "folds", "given", "given_twice", "ignored_flag",
    "implementation", "in_other_words", "key", "known", "layer_bias", "layer_of", "meet_once", "mode", "momentum",
    "more_data", "names", "needs_state", "normalized_shape", "number", "one_of", "order", "ordered", "output_dtype",
    "param_dtype", "parts", "positions", "real", "real_beside", "real_number", "reject_nnx_variables", "require_data",
    "require_stats", "residual", "running", "runs_when_called", "same_channels", "same_entries", "same_features",
    "same_style", "saw_data", "scale_offset", "several", "several_axes", "shares", "singular_vectors", "spec",
    "spec_classes", "stateless", "steps", "train", "training", "unbiased", "unpadded", "virtual_batch_size",
    "weights", "where", "window", "without_kernels",
]  # fmt: skip
