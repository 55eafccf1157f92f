"""The training of the demo: a logistic regression really fitted, epoch by epoch, on lagged returns.

The question it learns: will the next day's move, up or down, be larger than the usual one? Its direction can
hardly be learned from past returns, its size can, because calm and turbulent days come in clusters.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bars import FloatArray, simple_returns

MONTH = 21
"""Trading days behind the slowest feature."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to train: lags in days, `rate` the step of the gradient descent, `seed` of the shuffling."""

    lags: int = 10
    epochs: int = 40
    rate: float = 0.002
    batch: int = 64
    l2: float = 1e-4
    train_share: float = 0.7
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Split:
    """The samples in time order, cut once: everything held out is later than everything trained on.

    Features are standardised with the mean and spread of the training part, and a large move is one above the
    median of the training part, so nothing of the held-out part reaches the model.
    """

    train_features: FloatArray
    train_labels: FloatArray
    held_features: FloatArray
    held_labels: FloatArray
    threshold: float


@dataclass(frozen=True, slots=True)
class Epoch:
    """The model after an epoch; number 0 is the model before the first. Losses are mean log losses."""

    number: int
    epochs: int
    train_loss: float
    train_accuracy: float
    loss: float
    accuracy: float

    @property
    def progress(self) -> float:
        """Percent of the epochs done."""
        return round(100.0 * self.number / self.epochs, 1)


def split(prices: FloatArray, plan: Plan) -> Split:
    """Build the samples from the closes and cut them in time.

    Sample `t` knows the returns up to day `t` and is asked about day `t + 1`.

    Raises:
        ValueError: there are too few prices for two parts.
    """
    returns = simple_returns(prices)
    size = np.abs(returns)
    first = max(plan.lags, MONTH) - 1
    days = np.arange(first, len(returns) - 1)
    if len(days) < 10:
        raise ValueError(f"{len(prices)} prices are too few to train on")
    columns = [size[days - lag] for lag in range(plan.lags)]
    columns += [returns[days - lag] for lag in range(plan.lags)]
    columns.append(np.lib.stride_tricks.sliding_window_view(size, MONTH).mean(axis=1)[days - MONTH + 1])
    features = np.column_stack(columns)
    moves = size[days + 1]

    cut = int(len(days) * plan.train_share)
    mean, spread = features[:cut].mean(axis=0), features[:cut].std(axis=0)
    features = (features - mean) / spread
    threshold = float(np.median(moves[:cut]))
    labels = (moves > threshold).astype(np.float64)
    return Split(features[:cut], labels[:cut], features[cut:], labels[cut:], threshold)


class Model:
    """A logistic regression: weights and an intercept, fitted by stochastic gradient descent."""

    def __init__(self, features: int) -> None:
        self.weights = np.zeros(features)
        self.intercept = 0.0

    def probabilities(self, features: FloatArray) -> FloatArray:
        """How probable a large move is, for each row."""
        # The hyperbolic form of the logistic function cannot overflow.
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * (features @ self.weights + self.intercept))))

    def step(self, features: FloatArray, labels: FloatArray, rate: float, l2: float) -> None:
        """One step down the gradient of the log loss of this batch."""
        error = self.probabilities(features) - labels
        self.weights -= rate * (features.T @ error / len(labels) + l2 * self.weights)
        self.intercept -= rate * float(error.mean())

    def score(self, features: FloatArray, labels: FloatArray) -> tuple[float, float]:
        """Mean log loss and accuracy."""
        probability = np.clip(self.probabilities(features), 1e-12, 1.0 - 1e-12)
        loss = -(labels * np.log(probability) + (1.0 - labels) * np.log(1.0 - probability)).mean()
        return float(loss), float(((probability > 0.5) == (labels > 0.5)).mean())


def train(data: Split, plan: Plan) -> Iterator[Epoch]:
    """Fit a model and yield its state before the first epoch and after each."""
    model = Model(data.train_features.shape[1])
    shuffle = np.random.default_rng(plan.seed)
    for number in range(plan.epochs + 1):
        if number:
            order: NDArray[np.int64] = shuffle.permutation(len(data.train_labels))
            for start in range(0, len(order), plan.batch):
                rows = order[start : start + plan.batch]
                model.step(data.train_features[rows], data.train_labels[rows], plan.rate, plan.l2)
        train_loss, train_accuracy = model.score(data.train_features, data.train_labels)
        loss, accuracy = model.score(data.held_features, data.held_labels)
        yield Epoch(number, plan.epochs, train_loss, train_accuracy, loss, accuracy)
