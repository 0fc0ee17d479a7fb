"""Triggers against their definitions in float64 NumPy, and what bad arguments get."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from rkd_jax import backdoors
from rkd_jax.backdoors import files, warping
from rkd_jax.errors import CheckpointError, ConfigError

SHAPE = (12, 10, 3)


def images(count=4, shape=SHAPE, seed=0):
  return np.random.default_rng(seed).uniform(size=(count, *shape)).astype(np.float32)


def test_badnets_changes_the_square_alone():
  x = images()
  got = np.asarray(backdoors.badnets(SHAPE, 0, size=3, margin=1).apply(jnp.asarray(x)))
  wanted = x.copy()
  wanted[:, 8:11, 6:9] = 1
  np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_blended_is_the_mixture():
  x, trigger = images(), backdoors.blended(SHAPE, 0, opacity=0.3, seed=2)
  got = np.asarray(trigger.apply(jnp.asarray(x)), np.float64)
  pattern = (got - 0.7 * x) / 0.3
  # One pattern for all images, uniform in [0, 1].
  np.testing.assert_allclose(pattern, np.broadcast_to(pattern[:1], x.shape), atol=1e-5)
  assert pattern.min() > -1e-5 and pattern.max() < 1 + 1e-5
  assert 0.4 < pattern.mean() < 0.6 and pattern.std() > 0.2


def test_sig_is_the_sinusoid():
  x = images()
  got = backdoors.sig(SHAPE, 1, amplitude=0.2, frequency=3).apply(jnp.asarray(x))
  j = np.arange(10)
  wave = 0.2 * np.sin(2 * np.pi * j * 3 / 10)
  np.testing.assert_allclose(
      got, np.clip(x + wave[None, None, :, None], 0, 1), atol=1e-6)


def test_lc_marks_four_mirrored_corners():
  got = np.asarray(backdoors.lc(SHAPE, 1, size=3).apply(jnp.full((1, *SHAPE), 0.5)))[0]
  corner = np.indices((3, 3)).sum(0) % 2 == 0
  for view in (got, got[::-1], got[:, ::-1], got[::-1, ::-1]):
    np.testing.assert_allclose(view[:3, :3, 0], corner)
  assert (got == 0.5).sum() == (120 - 36) * 3


def cubic(x, a=-0.75):
  """Keys' kernel, as torch documents its bicubic interpolation."""
  x = abs(x)
  if x <= 1:
    return (a + 2) * x**3 - (a + 3) * x**2 + 1
  return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def test_upsampling_is_bicubic_with_aligned_corners():
  count, size = 4, 9
  values = np.random.default_rng(1).normal(size=count)
  wanted = []
  for i in range(size):
    place = i * (count - 1) / (size - 1)
    wanted.append(sum(
        values[min(max(k, 0), count - 1)] * cubic(place - k)
        for k in range(int(place) - 2, int(place) + 4)))
  np.testing.assert_allclose(warping.upsampling(count, size) @ values, wanted, atol=1e-5)


def test_warp_is_bilinear_sampling():
  x = images(2)
  field = np.random.default_rng(3).uniform(-2.5, 2.5, (*SHAPE[:2], 2))
  got = np.asarray(warping.warp(jnp.asarray(x), jnp.asarray(field, jnp.float32)))
  rows, columns = np.indices(SHAPE[:2])
  rows = np.clip(rows + field[..., 0], 0, SHAPE[0] - 1)
  columns = np.clip(columns + field[..., 1], 0, SHAPE[1] - 1)
  for b in range(2):
    for c in range(3):
      wanted = ndimage.map_coordinates(
          x[b, ..., c].astype(np.float64), [rows, columns], order=1, mode='nearest')
      np.testing.assert_allclose(got[b, ..., c], wanted, atol=1e-4)


def test_wanet_moves_by_its_strength():
  """The control grid's mean size is that of the paper: s H^-1 (H - 1) / 2 pixels."""
  small = np.asarray(backdoors.wanet(SHAPE, 0, strength=0.5).field)
  large = np.asarray(backdoors.wanet(SHAPE, 0, strength=2.0).field)
  np.testing.assert_allclose(large, 4 * small, rtol=1e-4, atol=1e-6)
  assert 0.02 < np.abs(small).mean() < 0.5
  # The corners are control points.
  wanted = np.abs(np.asarray(backdoors.wanet((4, 4, 1), 0, strength=0.5).field))
  np.testing.assert_allclose(wanted.mean(), 0.5 * 3 / 8, rtol=1e-4)


def test_cover_of_wanet_is_another_warp_for_each_image():
  trigger = backdoors.wanet(SHAPE, 0)
  x = jnp.asarray(np.repeat(images(1), 3, 0))
  covered = trigger.cover(x, jax.random.split(jax.random.key(0), 3))
  assert np.abs(np.asarray(covered[0] - covered[1])).max() > 1e-3
  assert np.abs(np.asarray(covered - trigger.apply(x))).max() > 1e-3
  with pytest.raises(ConfigError, match='no cover mode'):
    backdoors.badnets(SHAPE).cover(x, jax.random.split(jax.random.key(0), 3))


@pytest.mark.parametrize('name', sorted(backdoors.FIXED))
def test_uint8_is_the_rounded_float(name):
  trigger = backdoors.FIXED[name](SHAPE, 0)
  pixels = np.random.default_rng(0).integers(0, 256, (3, *SHAPE)).astype(np.uint8)
  got = jax.jit(lambda t, x: t.apply(x))(trigger, pixels)
  assert got.dtype == jnp.uint8
  exact = np.asarray(trigger.apply(jnp.asarray(pixels, jnp.float32) / 255), np.float64)
  assert exact.min() >= 0 and exact.max() <= 1
  assert np.abs(np.asarray(got) - 255 * exact).max() < 0.501
  assert (np.asarray(got) != pixels).any()


@pytest.mark.parametrize('make, message', [
    (lambda: backdoors.badnets((32, 32)), 'image_shape must be'),
    (lambda: backdoors.badnets((2, 2, 1)), 'does not fit'),
    (lambda: backdoors.badnets(SHAPE, -1), 'target must be a class index'),
    (lambda: backdoors.blended(SHAPE, opacity=0.0), r'opacity must be in \(0, 1\]'),
    (lambda: backdoors.sig(SHAPE, amplitude=2.0), 'amplitude'),
    (lambda: backdoors.sig((6, 6, 1)), 'choose one below 3'),
    (lambda: backdoors.lc(SHAPE, size=6), 'do not fit'),
    (lambda: backdoors.wanet(SHAPE, grid=1), 'grid must be >= 2'),
    (lambda: backdoors.badnets(SHAPE).apply(jnp.zeros((2, 10, 12, 3))),
     'was made for images'),
])
def test_errors(make, message):
  with pytest.raises(ConfigError, match=message):
    make()


@pytest.mark.parametrize('name', ('sig', 'wanet'))
def test_a_trigger_survives_its_file(name, tmp_path):
  trigger = backdoors.FIXED[name](SHAPE, 2)
  files.save(tmp_path, trigger, {'mode': 'all_to_one'})
  again, more = files.load(tmp_path)
  assert more == {'mode': 'all_to_one'}
  assert (again.name, again.target, again.clean_label) == (
      name, 2, trigger.clean_label)
  np.testing.assert_array_equal(again.apply(jnp.asarray(images())),
                                trigger.apply(jnp.asarray(images())))
  (tmp_path / 'trigger.safetensors').write_bytes(b'no')
  with pytest.raises(CheckpointError, match='no usable trigger'):
    files.load(tmp_path)
