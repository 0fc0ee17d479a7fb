"""Balls, boxes and random starts, against exact arithmetic and distributions."""

from fractions import Fraction

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rkd_jax.attacks import threat
from rkd_jax.errors import ConfigError

SHAPE = (3, 7)
project = jax.jit(threat.project, static_argnames='norm')

# Subnormals count as zero, so they are not drawn.
floats = lambda bound: st.floats(-bound, bound, width=32, allow_subnormal=False)
batch = lambda bound: hnp.arrays(np.float32, SHAPE, elements=floats(bound))
radius = lambda bound: st.floats(0, bound, width=32, allow_subnormal=False).map(
    np.float32)
MAX = float(np.finfo(np.float32).max)


@hypothesis.given(adv=batch(MAX), images=batch(MAX), eps=radius(MAX),
                  scale=st.sampled_from([1e-30, 1e-6, 1.0]))
@hypothesis.settings(max_examples=150, deadline=None)
def test_linf_projection_is_in_the_ball_in_float32(adv, images, eps, scale):
  eps = np.float32(eps * scale)
  hypothesis.assume(eps == 0 or eps > 1e-37)
  out = np.asarray(project(adv, images, eps=eps, norm='linf',
                           lower=-np.inf, upper=np.inf))
  with np.errstate(over='ignore'):
    assert (np.abs(out - images) <= eps).all()
  inside = np.abs(adv.astype(np.float64) - images) <= eps
  # In exact arithmetic what is inside stays, to the neighbour that rounds in.
  size = np.maximum(np.abs(adv), np.abs(images))[inside]
  neighbour = np.spacing(np.minimum(size, np.float32(1e38)))
  assert (np.abs(out[inside].astype(np.float64) - adv[inside])
          <= 4 * neighbour.astype(np.float64)).all()


@hypothesis.given(adv=batch(3.0), images=hnp.arrays(
    np.float32, SHAPE, elements=st.floats(0, 1, width=32, allow_subnormal=False)),
    eps=st.one_of(radius(8.0), st.sampled_from(
        [np.float32(n / 255) for n in (0, 1, 2, 4, 8, 16)])),
    norm=st.sampled_from(threat.NORMS))
@hypothesis.settings(max_examples=200, deadline=None)
def test_box_ball_and_idempotence(adv, images, eps, norm):
  out = np.asarray(project(adv, images, eps=eps, norm=norm, lower=0.0, upper=1.0))
  assert out.dtype == np.float32
  assert (out >= 0).all() and (out <= 1).all()
  if norm == 'linf':
    assert (np.abs(out - images) <= eps).all()
  again = np.asarray(project(out, images, eps=eps, norm=norm, lower=0.0, upper=1.0))
  np.testing.assert_array_equal(again, out)


@hypothesis.given(adv=batch(1.0), images=batch(1.0), eps=radius(4.0),
                  scale=st.sampled_from([1e-20, 1e-4, 1.0, 1e25]))
@hypothesis.settings(max_examples=200, deadline=None)
def test_l2_projection_is_in_the_ball_exactly(adv, images, eps, scale):
  adv, images, eps = (np.float32(x * np.float32(scale)) for x in (adv, images, eps))
  smallest = np.finfo(np.float32).tiny
  for x in (adv, images, eps):
    hypothesis.assume(((x == 0) | (np.abs(x) >= smallest * 1e6)).all())
  out = np.asarray(project(adv, images, eps=eps, norm='l2',
                           lower=-np.inf, upper=np.inf))
  for moved, clean in zip(out, images, strict=True):
    squares = sum((Fraction(float(a)) - Fraction(float(b))) ** 2
                  for a, b in zip(moved, clean, strict=True))
    assert squares <= Fraction(float(eps)) ** 2
  again = project(out, images, eps=eps, norm='l2', lower=-np.inf, upper=np.inf)
  np.testing.assert_array_equal(again, out)


@pytest.mark.parametrize('shape', [(5, 1), (5, 28, 28, 1), (5, 32, 32, 3)])
def test_l2_projection_is_the_nearest_point_of_the_ball(shape):
  rng = np.random.default_rng(0)
  images = rng.uniform(size=shape).astype(np.float32)
  adv = images + rng.normal(size=shape).astype(np.float32)
  adv[0] = images[0]
  eps = np.float32(0.125)
  out = np.asarray(project(adv, images, eps=eps, norm='l2', lower=-np.inf,
                           upper=np.inf))
  offset = (adv.astype(np.float64) - images).reshape(5, -1)
  norms = np.linalg.norm(offset, axis=1, keepdims=True)
  expected = offset * np.minimum(1, eps / np.where(norms > 0, norms, 1))
  np.testing.assert_allclose((out.astype(np.float64) - images).reshape(5, -1),
                             expected, rtol=2e-5, atol=1.3e-7)
  # As float32 evaluates it, in NumPy's order of summation.
  assert (np.linalg.norm((out - images).reshape(5, -1), axis=1) <= eps).all()


@pytest.mark.parametrize('norm', threat.NORMS)
def test_inside_the_ball_but_outside_the_box(norm):
  images = np.tile(np.float32([0, 1, 0.5, 0.999]), (2, 1))
  adv = images + np.float32([-0.01, 0.01, 0.01, 0.01])
  out = project(adv, images, eps=1.0, norm=norm, lower=0.0, upper=1.0)
  np.testing.assert_array_equal(out, np.clip(adv, 0, 1))


def test_compiled_rounding_is_not_simplified_away():
  """Pixels whose sum with eps rounds up, so that the distance exceeds eps."""
  images = np.linspace(0, 1, 4096, dtype=np.float32)[None]
  eps = np.float32(8 / 255)
  naive = (images + eps) - images
  assert (naive > eps).sum() > 100
  out = np.asarray(project(images + 1, images, eps=eps, norm='linf',
                           lower=-np.inf, upper=np.inf))
  assert (out - images <= eps).all()
  assert (eps - (out - images) <= np.spacing(np.float32(1))).all()


@pytest.mark.parametrize('scale', [1e-30, 1e-3, 1.0, 1e30])
def test_l2_norm_neither_overflows_nor_underflows(scale):
  values = np.random.default_rng(1).normal(size=(4, 9, 5)) * scale
  expected = np.sqrt(np.sum(np.square(values), axis=(1, 2)))
  got = threat.l2_norm(jnp.asarray(values, jnp.float32))
  assert got.shape == (4, 1, 1)
  np.testing.assert_allclose(np.ravel(got), expected, rtol=1e-6)


@pytest.mark.parametrize('scale', [0.0, 1e-30, 1.0, 1e30])
def test_ascent(scale):
  gradient = np.random.default_rng(2).normal(size=(3, 4, 2)) * scale
  gradient[:, 0, 0] = 0
  sign = threat.ascent(jnp.asarray(gradient, jnp.float32), norm='linf')
  np.testing.assert_array_equal(sign, np.sign(gradient))
  unit = threat.ascent(jnp.asarray(gradient, jnp.float32), norm='l2')
  norms = np.sqrt(np.sum(np.square(gradient), axis=(1, 2), keepdims=True))
  np.testing.assert_allclose(unit, gradient / np.where(norms > 0, norms, 1),
                             rtol=1e-5, atol=1e-12)


def start(kind, size, count=4000, **settings):
  keys = jax.random.split(jax.random.key(3), count)
  settings = {'eps': 0.5, 'norm': 'linf', 'lower': -np.inf, 'upper': np.inf,
              **settings}
  images = jnp.full((count, size), 0.25)
  return np.asarray(threat.random_start(images, keys, kind=kind, **settings)) - .25


def test_uniform_start_in_linf_fills_the_cube():
  noise = np.sort(start('uniform', 2).ravel()) / 0.5
  # Kolmogorov-Smirnov distance of 8000 draws; 1.95 / sqrt(n) has level 0.001.
  grid = (np.arange(len(noise)) + 0.5) / len(noise)
  assert np.abs((noise + 1) / 2 - grid).max() < 1.95 / np.sqrt(len(noise))


@pytest.mark.parametrize('size', [1, 6])
def test_uniform_start_in_l2_fills_the_ball_by_volume(size):
  noise = start('uniform', size, norm='l2')
  radii = np.linalg.norm(noise, axis=1) / 0.5
  assert radii.max() <= 1
  volume = np.sort(radii**size)
  grid = (np.arange(len(volume)) + 0.5) / len(volume)
  assert np.abs(volume - grid).max() < 1.95 / np.sqrt(len(volume))
  # E x_i^2 of the ball is r^2 / (D + 2) in every direction, E x_i x_j is 0.
  moments = noise.T @ noise / len(noise) * (size + 2) / 0.25
  np.testing.assert_allclose(moments, np.eye(size), atol=0.1)


def test_gaussian_start():
  noise = start('gaussian', 4)
  assert abs(noise.std() - 1e-3) < 3e-5
  assert abs(noise.mean()) < 3e-5
  wide = start('gaussian', 4, scale=0.1)
  assert abs(wide.std() - 0.1) < 3e-3
  clipped = start('gaussian', 4, scale=0.1, eps=0.01)
  assert np.abs(clipped).max() <= 0.01 + 1e-8


def test_starts_stay_in_the_box():
  keys = jax.random.split(jax.random.key(0), 8)
  images = jnp.zeros((8, 5)).at[:, ::2].set(1)
  noisy = threat.random_start(images, keys, kind='uniform', eps=0.3, norm='linf')
  assert noisy.min() >= 0 and noisy.max() <= 1
  assert (noisy != images).any()


def test_no_start_is_the_clean_image():
  images = jnp.linspace(0, 1, 12).reshape(3, 4)
  out = threat.random_start(images, None, kind='none', eps=0.1, norm='l2')
  np.testing.assert_array_equal(out, images)


def test_refused():
  images = jnp.zeros((2, 3))
  with pytest.raises(ConfigError, match="'linf'"):
    threat.project(images, images, eps=0.1, norm='lnf')
  with pytest.raises(ConfigError, match="'gaussian'"):
    threat.random_start(images, None, kind='gausian', eps=0.1, norm='linf')
  with pytest.raises(ConfigError, match='no effect'):
    threat.random_start(images, None, kind='none', eps=0.1, norm='linf', scale=1.)
