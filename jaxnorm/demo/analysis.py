"""What the results say: scores, speed, robustness, and a conclusion in words."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from jaxnorm.demo.experiment import Result
from jaxnorm.demo.model import VALUES_PER_IMAGE
from jaxnorm.demo.options import Options, label

TARGET = 0.90
TRAINS = 0.80


class Score(NamedTuple):
    """Test accuracy over the seeds: its mean, and its standard deviation (0 for a single seed)."""

    mean: float
    std: float

    def minus(self, other: "Score") -> "Score":
        """The difference, with the spread of independent scores."""
        return Score(self.mean - other.mean, float(np.hypot(self.std, other.std)))

    @property
    def clear(self) -> bool:
        """Whether a difference exceeds its spread."""
        return abs(self.mean) > self.std

    def __format__(self, sign: str) -> str:
        return f"{100 * self.mean:{sign}.1f} ± {100 * self.std:.1f}"


Scores = Mapping[tuple[str, int], Score]


def score(result: Result) -> Score:
    """Test accuracy at the chosen learning rate."""
    accuracies = result.test[:, result.chosen]
    return Score(float(accuracies.mean()), float(accuracies.std(ddof=1)) if len(accuracies) > 1 else 0.0)


def images_to_target(result: Result, options: Options) -> float:
    """The median over seeds of the images until validation accuracy first reaches `TARGET`, at the chosen rate.

    Infinite if half of the seeds or more never get there.
    """
    reached = result.validation[:, :, result.chosen] >= TARGET
    steps = np.asarray([*options.evaluated_at(result.batch_size), np.inf])
    first = steps[np.where(reached.any(0), reached.argmax(0), len(reached))]
    return float(np.median(first * result.batch_size))


def largest_rate(result: Result, options: Options) -> float | None:
    """The largest learning rate whose mean test accuracy is at least `TRAINS`."""
    means = zip(options.rates(result.batch_size), result.test.mean(0), strict=True)
    trains = [rate for rate, mean in means if mean >= TRAINS]
    return max(trains, default=None)


def conclusion(results: Sequence[Result]) -> str:
    """Sentences: who wins at which batch size, what a small batch costs batch and instance norm, and why."""
    scores = {(result.norm, result.batch_size): score(result) for result in results}
    sizes = sorted({size for _, size in scores})
    norms = list(dict.fromkeys(norm for norm, _ in scores))
    sentences = []
    if {"batch", "instance"} <= set(norms):
        sentences.append(_duel(scores, sizes))
        if len(sizes) > 1:
            sentences.append(_cost(scores, sizes))
    elif len(norms) > 1:
        sentences.append(_leaders(scores, norms, sizes))
    else:
        sentences.append(f"{label(norms[0])} alone reaches {max(scores.values())} %, with nothing to compare it with")
    with_batch_norm = [result for result in results if result.norm == "batch"]
    if with_batch_norm and np.isfinite([result.batch_errors for result in with_batch_norm]).all():
        sentences.append(_reason(with_batch_norm))
    if len(results[0].test) == 1:
        sentences.append("a single seed leaves chance unknown")
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _duel(scores: Scores, sizes: Sequence[int]) -> str:
    """Batch norm against instance norm."""

    def verdict(size):
        gap = scores["batch", size].minus(scores["instance", size])
        if not gap.clear:
            return "batch norm and instance norm are within the spread of each other {sizes}"
        return f"{'batch norm beats instance norm' if gap.mean > 0 else 'instance norm beats batch norm'} {{sizes}}"

    return _by_size(sizes, verdict)


def _cost(scores: Scores, sizes: Sequence[int]) -> str:
    """What the step from the largest batch to the smallest does to either."""
    batch, instance = (scores[norm, sizes[0]].minus(scores[norm, sizes[-1]]) for norm in ("batch", "instance"))
    gap = batch.minus(instance)
    more = f"{'batch' if gap.mean < 0 else 'instance'} norm needs the large batch more"
    verdict = more if gap.clear else "neither clearly needs the large batch more"
    return (
        f"from batch size {sizes[-1]} to {sizes[0]} the accuracy of batch norm changes by {batch:+} points and that of "
        f"instance norm by {instance:+}: {verdict}"
    )


def _reason(results: Sequence[Result]) -> str:
    """What the smallest and the largest batch know of the mean, in the first and in the deepest norm."""
    ends = sorted({results[0].batch_size, results[-1].batch_size})
    by_size = {result.batch_size: result.batch_errors for result in results}
    first, *_, last = VALUES_PER_IMAGE
    small, *large = (f"{by_size[size][0]:.2f} and {by_size[size][-1]:.2f} σ" for size in ends)
    return (
        f"at batch size {ends[0]} the mean of a batch is off by {small} in the first and the last block, where a "
        f"channel of an image has {first} and {last} values" + "".join(f"; at {ends[1]}, by {error}" for error in large)
    )


def _leaders(scores: Scores, norms: Sequence[str], sizes: Sequence[int]) -> str:
    """The best norm at each batch size, and what cannot be told apart from it."""

    def verdict(size):
        best = max(norms, key=lambda norm: scores[norm, size].mean)
        rivals = [n for n in norms if n != best and not scores[best, size].minus(scores[n, size]).clear]
        lead = f"with {_listed([label(norm) for norm in rivals])} within the spread" if rivals else "clearly ahead"
        return f"{label(best)} {{sizes}} ({lead})"

    return "the highest mean is that of " + _by_size(sizes, verdict)


def _by_size(sizes: Sequence[int], verdict: Callable[[int], str]) -> str:
    """The verdicts, those on neighbouring batch sizes told together where they are equal."""
    groups = [(text, list(group)) for text, group in groupby(sizes, verdict)]
    if len(groups) == 1 < len(sizes):
        return groups[0][0].format(sizes="at every batch size")
    return "; ".join(text.format(sizes=_at(group)) for text, group in groups)


def _at(sizes: Sequence[int]) -> str:
    """The batch sizes in words.

    >>> _at([4]), _at([2, 4, 8])
    ('at batch size 4', 'at batch sizes 2, 4 and 8')
    """
    return f"at batch size{'s' * (len(sizes) > 1)} {_listed([str(size) for size in sizes])}"


def _listed(items: Sequence[str]) -> str:
    """The items in words.

    >>> _listed(["2", "4", "8"])
    '2, 4 and 8'
    """
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))
