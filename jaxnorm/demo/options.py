"""What to run: the options of an experiment and their presets. Imports nothing slow, for the sake of `--help`."""

import dataclasses
import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import jaxnorm as jn

NORMS: Mapping[str, jn.Spec] = {
    "none": jn.Identity(),
    "batch": jn.BatchNorm(debias=True),
    "instance": jn.InstanceNorm(),
    "layer": jn.LayerNorm(axis=-1),
    "group": jn.GroupNorm(groups=4),
}

# The rest, another 400, is the test set: of the size of the validation set, so that one compiled program serves both.
TRAINING_IMAGES = 997
VALIDATION_IMAGES = 400
EVALUATIONS_PER_EPOCH = 4
RATES_ARE_FOR = 32


def label(norm: str) -> str:
    """The norm in words."""
    return "no norm" if norm == "none" else f"{norm} norm"


def spec_for(norm: str, batch_size: int) -> jn.Spec:
    """The norm, whose running averages are over about an epoch whatever the batch size.

    >>> print(f"{spec_for('batch', 2).momentum:.3f}, {spec_for('batch', 128).momentum:.3f}")
    0.998, 0.880
    """
    spec = NORMS[norm]
    if isinstance(spec, jn.BatchNorm):
        return dataclasses.replace(spec, momentum=math.exp(-batch_size / TRAINING_IMAGES))
    return spec


def _ascending(values: Iterable[float]) -> list[float]:
    return sorted(set(values))


@dataclasses.dataclass(frozen=True)
class Options:
    """An experiment: every norm at every batch size, each with every seed and learning rate, for as many images.

    Learning rates are those at batch size `RATES_ARE_FOR`; at others, they are in proportion. Lists are put in order,
    without repetitions.

    Raises:
        ValueError: an option names an unknown norm, or is out of range.

    >>> Options(batch_sizes=(2, 4096))
    Traceback (most recent call last):
        ...
    ValueError: --batch-sizes: 4096 is not between 1 and 997, the number of training images
    """

    norms: tuple[str, ...] = tuple(NORMS)
    batch_sizes: tuple[int, ...] = (2, 4, 8, 32, 128)
    learning_rates: tuple[float, ...] = (0.005, 0.02, 0.08, 0.3, 1.2)
    seeds: int = 4
    epochs: int = 5

    def __post_init__(self):
        for name, unique in (("norms", dict.fromkeys), ("batch_sizes", _ascending), ("learning_rates", _ascending)):
            object.__setattr__(self, name, tuple(unique(getattr(self, name))))
            if not getattr(self, name):
                raise ValueError(f"--{name.replace('_', '-')}: the list is empty")
        for norm in self.norms:
            if norm not in NORMS:
                raise ValueError(f"--norms: {norm!r} is unknown; choose from {', '.join(NORMS)}")
        for size in self.batch_sizes:
            if not 1 <= size <= TRAINING_IMAGES:
                raise ValueError(
                    f"--batch-sizes: {size} is not between 1 and {TRAINING_IMAGES}, the number of training images"
                )
        for rate in self.learning_rates:
            if not (rate > 0 and math.isfinite(rate)):
                raise ValueError(f"--learning-rates: {rate} is not a positive number")
        for name in ("seeds", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}: {getattr(self, name)} is less than 1")

    def steps(self, batch_size: int) -> int:
        """The number of gradient steps in which a run sees its images."""
        return self.epochs * TRAINING_IMAGES // batch_size

    def rates(self, batch_size: int) -> tuple[float, ...]:
        """The learning rates at this batch size.

        >>> Options(learning_rates=(0.1, 0.4)).rates(8)
        (0.025, 0.1)
        """
        return tuple(rate * batch_size / RATES_ARE_FOR for rate in self.learning_rates)

    def evaluated_at(self, batch_size: int) -> tuple[int, ...]:
        """The numbers of steps after which a run is evaluated; the last is the end of training.

        >>> Options(epochs=1).evaluated_at(128)
        (1, 3, 5, 7)
        """
        steps, parts = self.steps(batch_size), EVALUATIONS_PER_EPOCH * self.epochs
        return tuple(sorted({max(1, steps * part // parts) for part in range(1, parts + 1)}))

    @property
    def runs(self) -> int:
        """The number of networks trained."""
        return len(self.norms) * len(self.batch_sizes) * self.seeds * len(self.learning_rates)


FULL = Options()
QUICK = Options(
    norms=("none", "batch", "instance"), batch_sizes=(2, 32), learning_rates=(0.02, 0.08, 0.3), seeds=3, epochs=2
)


def writable_folder(path: Path) -> Path:
    """The folder, created if need be.

    Raises:
        ValueError: nothing can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise ValueError(f"--out: cannot write to {path}: {error.strerror}") from error
