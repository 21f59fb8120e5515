"""The handwritten digits that scikit-learn ships, split three ways, and the order in which a run sees them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from jaxnorm.demo.options import TRAINING_IMAGES, VALIDATION_IMAGES, Options

_SPLIT_SEED = 0


class Digits(NamedTuple):
    """Images of 8 × 8 pixels between 0 and 1, and the digits that they show."""

    images: Float[np.ndarray, "n 8 8 1"]
    labels: Int[np.ndarray, "n"]


class Splits(NamedTuple):
    """Disjoint parts with equal shares of each digit: to train on, to choose the learning rate on, and to report on."""

    train: Digits
    validation: Digits
    test: Digits


def load() -> Splits:
    """The three parts, the same in every call."""
    pixels, labels = map(np.asarray, load_digits(return_X_y=True))
    images = (pixels / pixels.max()).reshape(-1, 8, 8, 1).astype(np.float32)
    train, rest = _split(Digits(images, labels.astype(np.int32)), TRAINING_IMAGES)
    return Splits(train, *_split(rest, VALIDATION_IMAGES))


def batch_order(options: Options, batch_size: int) -> Int[np.ndarray, "seeds steps batch"]:
    """Which training images make up each batch: one shuffled epoch after the other, shared by norms and learning rates.

    >>> batch_order(Options(seeds=2, epochs=1), 128).shape
    (2, 7, 128)
    """
    steps = options.steps(batch_size)
    needed = steps * batch_size
    orders = []
    for seed in range(options.seeds):
        rng = np.random.default_rng(seed)
        epochs = [rng.permutation(TRAINING_IMAGES) for _ in range(-(-needed // TRAINING_IMAGES))]
        orders.append(np.concatenate(epochs)[:needed].reshape(steps, batch_size))
    return np.stack(orders).astype(np.int32)


def _split(digits: Digits, first: int) -> tuple[Digits, Digits]:
    indices = np.arange(len(digits.labels))
    parts = train_test_split(indices, train_size=first, stratify=digits.labels, random_state=_SPLIT_SEED)
    one, other = (Digits(digits.images[part], digits.labels[part]) for part in parts)
    return one, other
