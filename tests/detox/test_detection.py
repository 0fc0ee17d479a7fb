"""The two searches for a backdoor's class, and how they are added up."""

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax import detox
from rkd_jax.data.dataset import Split
from rkd_jax.detox import detection, universal
from tests.detox.small import SHAPE, split


def test_anomaly_index_by_hand():
  size = np.array([10.0, 12.0, 11.0, 9.0, 1.0])
  # Median 10, deviations 0 2 1 1 9: their median is 1.
  np.testing.assert_allclose(
      detection.anomaly_index(size), (10 - size) / 1.4826)
  np.testing.assert_allclose(detection.anomaly_index(size, 5.0), (10 - size) / 5)
  assert (detection.anomaly_index(np.ones(4)) == 0).all()


def test_neural_cleanse_finds_the_easy_class():
  """Class 2 is said wherever the corner pixel is white; the others read sums."""
  def fn(x):
    flat = x.reshape(len(x), -1)
    sums = jnp.stack([flat[:, i::6].sum(1) for i in range(6)], 1)
    return (sums - sums.mean(1, keepdims=True)) * 3 + 60 * jax.nn.one_hot(
        2, 6) * flat[:, -1:]
  report = detox.detect(fn, Split(split(60).image // 4, split(60).label), 6, steps=120)
  assert report.suspects == [2]
  assert report.success[2] > 0.9
  assert report.size[2] == min(report.size)


def test_reach_is_that_of_the_best_perturbation_of_a_linear_network():
  """Of two classes: d_k = eps sign(w_k - w_other), whatever the image."""
  rng = np.random.default_rng(2)
  weight = 0.1 * rng.normal(size=(64, 2))
  data = Split(rng.integers(80, 170, (30, *SHAPE)).astype(np.uint8),
               (np.arange(30) % 2).astype(np.int32))
  got = universal.reach(lambda x: x.reshape(len(x), -1) @ jnp.asarray(weight), data, 2,
                        eps=0.1, key=jax.random.key(0))
  flat = data.image.reshape(30, -1) / 255
  for k in range(2):
    towards = weight[:, k] - weight[:, 1 - k]
    logit = (flat + 0.1 * np.sign(towards)) @ towards
    wanted = -np.log1p(np.exp(-logit))[data.label != k].mean()
    np.testing.assert_allclose(got[k], wanted, rtol=1e-4)


def report_of(size, reach, success=0.5):
  size = np.asarray(size, np.float64)
  return detection.Report(size, np.full(len(size), success), np.asarray(reach),
                          np.zeros((len(size), 20, 20, 1)), None)


def test_a_report_adds_both_indices():
  size, reach = np.array([22., 10, 42, 12, 32]), np.array([-5., -1, -7, -5, -6])
  report = report_of(size, reach)
  by_hand = (22 - size) / (1.4826 * 10) + (reach + 5) / 1.4826
  np.testing.assert_allclose(report.anomaly, by_hand)
  assert list(report.nearest) == [1, 3, 0, 4, 2] and report.suspects == [1]


def test_classes_that_are_all_alike_are_not_suspicious():
  """One of them stands out by many deviations, each of which is next to nothing."""
  size = np.array([50.0, 65, 66, 65, 66, 65])
  reach = np.array([-0.1, -0.3, -0.31, -0.32, -0.3, -0.31])
  report = report_of(size, reach)
  assert detection.anomaly_index(size)[0] > 3 < detection.anomaly_index(-reach)[0]
  assert report.suspects == [] and report.nearest[0] == 0
  assert report_of(np.where(size == 50, 10, size), reach).suspects == [0]


def test_classes_that_are_all_easy_are_suspicious():
  """Of 400 pixels, 2.5 % are 10; where the patch turns few images it proves nothing."""
  size, reach = [9.0, 9.5, 8, 11, 9.9], np.full(5, -1.0)
  assert report_of(size, reach, success=0.9).suspects == [0, 1, 2, 4]
  assert report_of(size, reach, success=0.8).suspects == []
