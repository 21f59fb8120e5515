"""The pytrees: what a norm learns, what it keeps, and moments."""

from jaxnorm._types.parameters import (
    Affine,
    EvoAffine,
    GatedAffine,
    SwitchableAffine,
    TanhAffine,
    ThresholdedAffine,
    fields,
    with_given,
)
from jaxnorm._types.statistics import (
    ADDED,
    Accumulating,
    Inspection,
    Moments,
    Recalibrating,
    RunningState,
    RunningStats,
    SingularVectors,
    plain,
    running_fields,
    running_of,
    uncounted,
)

__all__ = [
    "ADDED", "Accumulating", "Affine", "EvoAffine", "GatedAffine", "Inspection", "Moments", "Recalibrating",
    "RunningState", "RunningStats", "SingularVectors", "SwitchableAffine", "TanhAffine", "ThresholdedAffine", "fields",
    "plain", "running_fields", "running_of", "uncounted", "with_given",
]  # fmt: skip
