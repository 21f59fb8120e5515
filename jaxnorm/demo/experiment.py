"""The experiment: each norm at each batch size, trained, validated and tested."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise, product

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxnorm.demo import training
from jaxnorm.demo.data import Digits, Splits, batch_order
from jaxnorm.demo.options import NORMS, VALIDATION_IMAGES, Options

_CHECKED_IMAGES = 16
_TOLERANCE = 1e-3

Advance = Callable[[str, int], None]


class BatchDependenceError(RuntimeError):
    """A network predicts something else for an image alone than for the same image in a batch."""


@dataclass(frozen=True)
class Result:
    """What came of one norm at one batch size.

    Attributes:
        validation: accuracy on the validation images after `Options.evaluated_at` steps.
        test: accuracy on the test images at the end.
        batch_dependence: the largest relative difference between predictions in a batch and one image at a time.
    """

    norm: str
    batch_size: int
    validation: Float[np.ndarray, "evaluations seeds rates"]
    test: Float[np.ndarray, "seeds rates"]
    batch_dependence: float

    @property
    def chosen(self) -> int:
        """The index of the learning rate that validates best, averaged over the seeds; of equals, the smallest."""
        return int(self.validation[-1].mean(0).argmax())


def run(options: Options, splits: Splits, advance: Advance) -> list[Result]:
    """All results, norm by norm; `advance` hears what is trained, and how much more of `work` has been done."""
    # XLA compiles a program on one core: the next ones compile while this one runs.
    compiler = ThreadPoolExecutor(max_workers=2)
    try:
        cells = [_Cell(options, splits, norm, size) for norm, size in product(options.norms, options.batch_sizes)]
        prepared = [compiler.submit(cell.prepare) for cell in cells]
        return [cell.result(runs.result(), advance) for cell, runs in zip(cells, prepared, strict=True)]
    finally:
        compiler.shutdown(cancel_futures=True)


def work(options: Options) -> int:
    """What a whole experiment passes to `advance`, in sum."""
    spans = pairwise((0, *options.evaluated_at))
    return len(options.norms) * sum(_work(stop - start, size) for start, stop in spans for size in options.batch_sizes)


def _work(steps: int, batch_size: int) -> int:
    # In forward passes: a training step takes about three, for the gradients.
    return 3 * steps * batch_size + VALIDATION_IMAGES


@dataclass(frozen=True)
class _Cell:
    """One norm at one batch size, still to be run."""

    options: Options
    splits: Splits
    norm: str
    batch_size: int

    def prepare(self) -> training.Run:
        """Fresh runs. Training them for no steps compiles the program."""
        runs = training.start(NORMS[self.norm], self.options.seeds, self._rates, self.options.steps)
        return self._train(runs, self._order(), 0, 0)

    def result(self, runs: training.Run, advance: Advance) -> Result:
        """Trains, validates along the way, tests, and checks that the networks can be deployed."""
        order, validation = self._order(), []
        for start, stop in pairwise((0, *self.options.evaluated_at)):
            runs = self._train(runs, order, start, stop)
            validation.append(_accuracy(self._predict(runs, self.splits.validation.images), self.splits.validation))
            advance(f"{self.norm}, batch size {self.batch_size}", _work(stop - start, self.batch_size))
        logits = self._predict(runs, self.splits.test.images)
        test, dependence = _accuracy(logits, self.splits.test), self._batch_dependence(runs, logits)
        return Result(self.norm, self.batch_size, np.stack(validation), test, dependence)

    @property
    def _rates(self) -> Float[np.ndarray, "rates"]:
        return np.asarray(self.options.learning_rates, np.float32)

    def _order(self) -> Int[Array, "seeds steps batch"]:
        return jnp.asarray(batch_order(self.options, self.batch_size))

    def _train(self, runs: training.Run, order: Int[Array, "..."], start: int, stop: int) -> training.Run:
        spec, span = NORMS[self.norm], jnp.array([start, stop])
        return training.train(spec, runs, self._rates, order, span, self.splits.train, self.options.steps)

    def _predict(
        self, runs: training.Run, images: Float[np.ndarray, "n 8 8 1"]
    ) -> Float[np.ndarray, "seeds rates n 10"]:
        return np.asarray(training.predict(NORMS[self.norm], runs, images))

    def _batch_dependence(self, runs: training.Run, logits: Float[np.ndarray, "seeds rates n 10"]) -> float:
        """Predicts some test images one at a time, and compares with the logits of them all."""
        images = self.splits.test.images[:_CHECKED_IMAGES]
        alone = np.concatenate([self._predict(runs, image[None]) for image in images], axis=2)
        difference = relative_difference(alone, logits[:, :, :_CHECKED_IMAGES])
        if not difference <= _TOLERANCE:
            raise BatchDependenceError(
                f"{self.norm} norm, trained at batch size {self.batch_size}: the logits of an image alone and of the "
                f"same image in a batch differ by {difference:.1e} of the largest logit, more than {_TOLERANCE:.0e}"
            )
        return difference


def _accuracy(logits: Float[np.ndarray, "seeds rates n 10"], digits: Digits) -> Float[np.ndarray, "seeds rates"]:
    # The argmax of NaN is 0: a run that has diverged is at chance.
    return (logits.argmax(-1) == digits.labels).mean(-1)


def relative_difference(alone: Float[np.ndarray, "*runs n 10"], together: Float[np.ndarray, "*runs n 10"]) -> float:
    """The largest difference in any run, relative to the largest logit of that run.

    What a run that has diverged predicts is not a number, and is left out.

    >>> relative_difference(np.array([[2.0, 3.0]]), np.array([[2.0, 4.0]]))
    0.25
    """
    finite = np.isfinite(together)
    over_images = (-2, -1)
    largest = np.max(np.abs(together), over_images, where=finite, initial=0)
    difference = np.max(np.abs(alone - together), over_images, where=finite, initial=0)
    return float(np.max(difference / np.maximum(largest, 1e-30)))
