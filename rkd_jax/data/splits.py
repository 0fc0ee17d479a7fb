"""Fixed subsets: the held-out validation examples and the first N of a split.

Every subset is a prefix of one fixed order, so it is the same in every run,
whatever the training seed, and a smaller subset lies within a larger one. The
order spreads each class evenly: any prefix of length m holds a class with n_c
of n examples about m * n_c / n times, so small subsets keep every class.
"""

import numbers

import numpy as np

from rkd_jax.data.dataset import Split
from rkd_jax.errors import ConfigError

_SUBSET_SEED = 20_230_517  # Fixed for good: another value is another data set.


def stratified_order(label: np.ndarray, seed: int) -> np.ndarray:
  """A fixed pseudo-random order of the examples in which classes are spread out.

  The examples of a class are shuffled; the j-th of n_c gets a position drawn
  uniformly from [j / n_c, (j + 1) / n_c), and all are sorted by position.

  Args:
    label: int[N].
    seed: of the order.

  Returns:
    int64[N], a permutation of 0..N - 1.
  """
  # RandomState's stream is frozen by NumPy (NEP 19); Generator's is not.
  random = np.random.RandomState(seed)
  shuffled = random.permutation(len(label))
  jitter = random.random_sample(len(label))
  position = np.empty(len(label))
  for value in np.unique(label):
    members = shuffled[label[shuffled] == value]
    position[members] = (np.arange(len(members)) + jitter[members]) / len(members)
  return np.argsort(position, kind='stable')


def check(validation: float, train_examples: int | None,
          test_examples: int | None) -> None:
  """Refuses settings that fit no data set, before one is read.

  Raises:
    ConfigError: A fraction outside [0, 1), or a number of examples below 1.
  """
  if isinstance(validation, bool) or not isinstance(validation, numbers.Real) or (
      not 0 <= validation < 1):
    raise ConfigError(f'validation must be a number in [0, 1), got {validation!r}')
  for setting, count in (('train_examples', train_examples),
                         ('test_examples', test_examples)):
    if count is not None and (isinstance(count, bool) or not isinstance(
        count, numbers.Integral) or count < 1):
      raise ConfigError(
          f'{setting} must be an integer >= 1 (None takes all), got {count!r}')


def hold_out(split: Split, fraction: float) -> tuple[Split, Split]:
  """Splits the stored training examples into training and validation.

  Args:
    split: N examples in stored order.
    fraction: in [0, 1). round(fraction * N) examples are held out, at least one
      when it is positive.

  Returns:
    (train, validation), both in the fixed order.

  Raises:
    ConfigError: the fraction leaves no training example.
  """
  held = max(round(fraction * len(split)), int(fraction > 0))
  if held >= len(split):
    raise ConfigError(
        f'validation={fraction} holds out all {len(split)} training examples; '
        'choose a smaller fraction')
  order = stratified_order(split.label, _SUBSET_SEED)
  return _pick(split, order[held:]), _pick(split, order[:held])


def first_train(train: Split, count: int | None) -> Split:
  """The first `count` examples of a split in the fixed order; None takes all."""
  if count is None:
    return train
  _check_count('train_examples', count, len(train), 'after the validation split')
  return Split(train.image[:count].copy(), train.label[:count].copy())


def some_test(test: Split, count: int | None) -> Split:
  """A fixed subset of the test examples, left in stored order; None takes all."""
  if count is None:
    return test
  _check_count('test_examples', count, len(test), 'in the test split')
  order = stratified_order(test.label, _SUBSET_SEED)
  return _pick(test, np.sort(order[:count]))


def _check_count(setting: str, count: int, available: int, where: str) -> None:
  if count > available:
    raise ConfigError(
        f'{setting}={count}, but there are {available} examples {where}')


def _pick(split: Split, index: np.ndarray) -> Split:
  return Split(split.image[index], split.label[index])
