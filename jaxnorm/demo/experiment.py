"""The experiment: each norm at each batch size, trained, validated and tested."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import jaxnorm as jn
from jaxnorm.demo import training
from jaxnorm.demo.data import Digits, Splits, batch_order
from jaxnorm.demo.options import TRAINING_IMAGES, VALIDATION_IMAGES, Options, spec_for

_CHECKED_IMAGES = 16
_TOLERANCE = 1e-3

Images = Float[np.ndarray, "n 8 8 1"]
Logits = Float[np.ndarray, "seeds rates n 10"]
Advance = Callable[[str, int], None]


class BatchDependenceError(RuntimeError):
    """A network predicts something else for an image alone than for the same image in a batch."""


@dataclass(frozen=True)
class Result:
    """What came of one norm at one batch size.

    Attributes:
        validation: accuracy on the validation images after `Options.evaluated_at` steps.
        test: accuracy on the test images at the end.
        batch_errors: what `training.batch_errors` finds after training at the chosen rate.
        batch_dependence: the largest relative difference between predictions in a batch and one image at a time.
    """

    norm: str
    batch_size: int
    validation: Float[np.ndarray, "evaluations seeds rates"]
    test: Float[np.ndarray, "seeds rates"]
    batch_errors: Sequence[float]
    batch_dependence: float

    @property
    def chosen(self) -> int:
        """The index of the learning rate that validates best."""
        return _best(self.validation[-1])


def _best(accuracies: Float[np.ndarray, "seeds rates"]) -> int:
    """The index of the rate with the best mean over the seeds; of equals, the smallest."""
    return int(accuracies.mean(0).argmax())


def run(options: Options, splits: Splits, advance: Advance) -> list[Result]:
    """All results, norm by norm; `advance` hears what is trained, and how much more of `work` has been done."""
    # Accelerators may round the products of a batch and of a single image differently, unless told not to.
    with jax.default_matmul_precision("float32"):
        return [_result(options, splits, *cell, advance) for cell in product(options.norms, options.batch_sizes)]


def work(options: Options) -> int:
    """What a whole experiment passes to `advance`, in sum."""
    return len(options.norms) * sum(
        _work(stop - start, size) for size in options.batch_sizes for start, stop in _spans(options, size)
    )


def _spans(options: Options, batch_size: int) -> Iterable[tuple[int, int]]:
    """The steps between evaluations: each from the first number up to the second."""
    return pairwise((0, *options.evaluated_at(batch_size)))


def _work(steps: int, batch_size: int) -> int:
    # In forward passes: a training step takes about three, for the gradients.
    return 3 * steps * batch_size + VALIDATION_IMAGES


def _result(options: Options, splits: Splits, norm: str, batch_size: int, advance: Advance) -> Result:
    """Trains, validates along the way, tests, and checks that the networks can be deployed."""
    spec, rates = spec_for(norm, batch_size), jnp.array(options.rates(batch_size))
    order, steps, validation = batch_order(options, batch_size), options.steps(batch_size), []
    runs, on_device = training.start(spec, options.seeds, rates, steps), jnp.asarray(order)
    for start, stop in _spans(options, batch_size):
        runs = training.train(spec, runs, rates, on_device, jnp.array([start, stop]), splits.train, steps)
        validation.append(_accuracy(_logits(spec, runs, splits.validation.images), splits.validation))
        advance(f"{norm}, batch size {batch_size}", _work(stop - start, batch_size))
    logits = _logits(spec, runs, splits.test.images)
    difference = _batch_dependence(spec, runs, splits.test.images, logits)
    if not difference <= _TOLERANCE:
        raise BatchDependenceError(
            f"{norm} norm, trained at batch size {batch_size}: the logits of an image alone and of the same image in a "
            f"batch differ by {difference:.1e} of the largest logit, more than {_TOLERANCE:.0e}"
        )
    chosen = jax.tree.map(lambda leaf: leaf[:, _best(validation[-1])], runs)
    batches = (splits.train.images[rows] for rows in order[0, : TRAINING_IMAGES // batch_size])
    errors = training.batch_errors(spec, chosen, batches)
    return Result(norm, batch_size, np.stack(validation), _accuracy(logits, splits.test), errors, difference)


def _logits(spec: jn.Spec, runs: training.Run, images: Images) -> Logits:
    return np.asarray(training.predict(spec, runs, images))


def _accuracy(logits: Logits, digits: Digits) -> Float[np.ndarray, "seeds rates"]:
    # The argmax of NaN is 0: a run that has diverged is at chance.
    return (logits.argmax(-1) == digits.labels).mean(-1)


def _batch_dependence(spec: jn.Spec, runs: training.Run, images: Images, together: Logits) -> float:
    """Predicts some images one at a time, and compares with the logits of them all in one batch."""
    alone = [_logits(spec, runs, image[None]) for image in images[:_CHECKED_IMAGES]]
    return relative_difference(np.concatenate(alone, axis=2), together[:, :, :_CHECKED_IMAGES])


def relative_difference(alone: Logits, together: Logits) -> float:
    """The largest difference in any run, relative to the largest logit of that run.

    What a run that has diverged predicts is not a number, and is left out.

    >>> together = np.array([2.0, 4.0, np.nan, np.nan]).reshape(2, 1, 1, 2)
    >>> relative_difference(together - 1, together)
    0.25
    """
    finite, of_a_run = np.isfinite(together), (-2, -1)
    difference = np.subtract(alone, together, where=finite, out=np.zeros_like(together))
    largest = np.abs(together).max(of_a_run, where=finite, initial=0)
    return float((np.abs(difference).max(of_a_run) / np.where(largest > 0, largest, 1)).max())
