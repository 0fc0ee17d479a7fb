"""Accuracy under attack, on a classifier whose worst case is known."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax.errors import ConfigError
from rkd_jax.evaluation import robustness
from rkd_jax.models.network import Network

N, SIDE = 100, 4
EPS = 16 / 255


class Threshold(nn.Module):
  """Class 1 where the mean pixel is above a threshold: logits +-s (mean - t).

  Attributes:
    slope: s; negative turns the classes round.
  """

  slope: float = 3.0

  @nn.compact
  def __call__(self, images, train=False):
    threshold = self.param('threshold', nn.initializers.constant(0.5), ())
    score = self.slope * (jnp.mean(images, axis=(1, 2, 3)) - threshold)
    return jnp.stack([-score, score], axis=1)


NETWORK = Network(Threshold())
VARIABLES = {'params': {'threshold': jnp.float32(0.5)}, 'batch_stats': {}}
KEY = jax.random.key(0)


def make_split():
  """Flat images of every grey from 70 to 169, far from the edges of the box."""
  grey = np.arange(70, 70 + N, dtype=np.uint8)
  image = np.broadcast_to(grey[:, None, None, None], (N, SIDE, SIDE, 1)).copy()
  label = (grey > 127).astype(np.int32)
  label[::10] = 1 - label[::10]  # Some are wrong from the start.
  return types.SimpleNamespace(image=image, label=label)


def expected(split, radius):
  """Right, and further from the threshold than the attack can move the mean."""
  mean = split.image[:, 0, 0, 0] / 255
  distance = np.where(split.label == 1, mean - 0.5, 0.5 - mean)
  assert np.abs(distance - radius).min() > 1e-4
  return distance > radius


def judge(spec, batch_size=64, split=None, **settings):
  return robustness.correct(NETWORK, VARIABLES, split or make_split(), spec, key=KEY,
                            batch_size=batch_size, **settings)


@pytest.mark.parametrize('name', ['clean', 'fgsm', 'pgd10', 'cw30'])
def test_known_answers_in_linf(name):
  split = make_split()
  spec = robustness.standard_attacks(EPS)[name]
  right = judge(spec, split=split)
  assert right.shape == (N,) and right.dtype == bool
  np.testing.assert_array_equal(
      right, expected(split, 0 if name == 'clean' else EPS))


@pytest.mark.parametrize('kind', ['fgsm', 'cw'])
def test_known_answers_in_l2(kind):
  """The mean of D pixels moves by radius / sqrt(D)."""
  split, radius = make_split(), 0.3
  spec = robustness.AttackSpec(kind, eps=radius, step_size=0.3, steps=6, norm='l2')
  np.testing.assert_array_equal(judge(spec, split=split),
                                expected(split, radius / SIDE))


def test_transfer_from_a_source_with_other_gradients():
  """Images made against a source that reads the greys the other way round help."""
  split = make_split()
  spec = robustness.standard_attacks(EPS)['transfer']
  turned = Network(Threshold(slope=-3.0))
  right = judge(spec, split=split, source=(turned, VARIABLES))
  np.testing.assert_array_equal(right, expected(split, -EPS))
  np.testing.assert_array_equal(
      judge(spec, split=split, source=(NETWORK, VARIABLES)), expected(split, EPS))


def test_batch_size_and_padding_change_nothing():
  split = make_split()
  # One step from a uniform start, so that the random start decides.
  spec = robustness.AttackSpec('pgd', eps=EPS, step_size=0.0, steps=1, norm='linf')
  results = [judge(spec, batch_size, split) for batch_size in (7, 64, N, 130)]
  for other in results[1:]:
    np.testing.assert_array_equal(other, results[0])
  assert 0 < results[0].sum() < N


def test_one_program_for_all_batches_and_variables():
  traced = []

  class Counted(Threshold):
    def __call__(self, images, train=False):
      traced.append(images.shape)
      return super().__call__(images, train)

  split, spec = make_split(), robustness.AttackSpec('clean')
  answers = []
  for threshold in (0.4, 0.5):
    variables = {'params': {'threshold': jnp.float32(threshold)}, 'batch_stats': {}}
    answers.append(robustness.correct(
        Network(Counted()), variables, split, spec, key=KEY, batch_size=33))
  assert traced == [(33, SIDE, SIDE, 1)]
  assert (answers[0] != answers[1]).any()


def test_evaluate():
  split = make_split()
  names = ['clean', 'fgsm', 'pgd20']
  seen = []
  results = robustness.evaluate(
      NETWORK, VARIABLES, split,
      robustness.specs_from(names, {'eps': EPS, 'norm': 'linf', 'steps': 10}),
      key=KEY, batch_size=60, progress=lambda *report: seen.append(report))
  assert list(results) == [*names, 'worst', 'w_robust']
  clean, robust = expected(split, 0).sum(), expected(split, EPS).sum()
  assert results['clean'] == {'accuracy': clean / N, 'n': N, 'correct': clean}
  for name in ('fgsm', 'pgd20', 'worst'):
    assert results[name] == {'accuracy': robust / N, 'n': N, 'correct': robust}
  assert results['w_robust'] == pytest.approx((clean + robust) / 2 / N)
  assert seen == [(name, done, N) for name in names for done in (60, 100)]
  assert all(type(value) in (float, int) for value in results['clean'].values())


def test_worst_is_the_intersection():
  """Clean images and images that the turned source made fool different ones."""
  split = make_split()
  specs = {'towards': robustness.AttackSpec('fgsm', eps=EPS),
           'away': robustness.standard_attacks(EPS)['transfer']}
  split.label[50:] = 0  # So that the sets do not lie within each other.
  variables = VARIABLES
  source = (Network(Threshold(slope=-3.0)), variables)
  results = robustness.evaluate(NETWORK, variables, split, specs, key=KEY,
                                batch_size=N, source=source)
  both = expected(split, EPS) & expected(split, -EPS)
  assert results['worst']['correct'] == both.sum()
  assert 'w_robust' not in results


def test_standard_attacks_are_the_papers_at_8_255():
  specs = robustness.standard_attacks(8 / 255)
  make = robustness.AttackSpec
  assert specs['clean'] == make('clean')
  assert specs['fgsm'] == make('fgsm', eps=8 / 255)
  assert specs['pgd20'] == make('pgd', eps=8 / 255, step_size=2 / 255, steps=20)
  small = specs['pgd20_small']
  assert (small.kind, small.steps) == ('pgd', 20)
  assert small.step_size == pytest.approx(0.003)
  assert specs['cw30'] == make('cw', eps=8 / 255, step_size=2 / 255, steps=30)
  assert specs['transfer'] == make('transfer', eps=8 / 255, step_size=2 / 255,
                                   steps=20)
  assert robustness.standard_attacks(0.1)['pgd20'].step_size == pytest.approx(0.025)


def test_refused():
  with pytest.raises(ConfigError, match="'pgd20'"):
    robustness.specs_from(['pgd21'], {'eps': EPS, 'norm': 'linf'})
  with pytest.raises(ConfigError, match="unknown kind of attack 'autopgd'"):
    robustness.AttackSpec('autopgd')
  with pytest.raises(ConfigError, match='source'):
    judge(robustness.standard_attacks(EPS)['transfer'])
  floats = make_split()
  floats.image = floats.image / 255
  with pytest.raises(ConfigError, match='uint8'):
    judge(robustness.AttackSpec('clean'), split=floats)
  with pytest.raises(ConfigError, match='nothing to evaluate'):
    robustness.evaluate(NETWORK, VARIABLES, make_split(), {}, key=KEY, batch_size=8)
