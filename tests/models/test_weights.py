"""Weight files: the way there and back, and every reason to refuse one."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from rkd_jax import models
from rkd_jax.errors import CheckpointError
from rkd_jax.models import weights

SHAPE = (8, 8, 3)


@pytest.fixture(scope='module')
def like():
  return models.template(models.create('wide_resnet10_1', num_classes=4), SHAPE)


@pytest.fixture(scope='module')
def variables(like):
  rng = np.random.default_rng(0)
  return jax.tree.map(
      lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype(np.float32), like)


def write(path, flat):
  safetensors.numpy.save_file(flat, path)


def test_what_is_saved_is_loaded(tmp_path, like, variables):
  path = tmp_path / 'new' / 'weights.safetensors'
  models.save(path, jax.tree.map(jnp.asarray, variables))
  loaded = models.load(path, like)
  assert jax.tree.structure(loaded) == jax.tree.structure(variables)
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)
  assert [file.name for file in path.parent.iterdir()] == ['weights.safetensors']


def test_the_file_holds_flat_names_in_the_open_format(tmp_path, variables):
  path = tmp_path / 'w.safetensors'
  models.save(path, variables)
  raw = path.read_bytes()
  (length,) = struct.unpack('<Q', raw[:8])  # The format: length, JSON, bytes.
  header = json.loads(raw[8:8 + length])
  assert header['params/stem/kernel']['shape'] == [3, 3, 3, 16]
  assert header['params/stem/kernel']['dtype'] == 'F32'
  start, stop = header['batch_stats/last_bn/var']['data_offsets']
  found = np.frombuffer(raw[8 + length:][start:stop], '<f4')
  np.testing.assert_array_equal(found, variables['batch_stats']['last_bn']['var'])


def test_a_network_without_batchnorm(tmp_path):
  like = models.template(models.create('mlp_4', num_classes=3), (4, 4, 1))
  variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), like)
  models.save(tmp_path / 'w', variables)
  loaded = models.load(tmp_path / 'w', variables)
  assert loaded['batch_stats'] == {} and set(loaded) == {'params', 'batch_stats'}
  np.testing.assert_array_equal(
      loaded['params']['head']['kernel'], variables['params']['head']['kernel'])


def test_every_difference_is_listed_at_once(tmp_path, like, variables):
  flat = weights.flatten(variables)
  del flat['params/stem/kernel'], flat['batch_stats/last_bn/mean']
  flat['params/extra/kernel'] = np.ones((2, 2), np.float32)
  flat['params/head/bias'] = np.ones(5, np.float32)
  flat['params/head/kernel'] = flat['params/head/kernel'].astype(np.float16)
  flat['params/last_bn/scale'] = flat['params/last_bn/scale'].astype(np.float64)
  write(tmp_path / 'w', flat)
  with pytest.raises(CheckpointError) as caught:
    models.load(tmp_path / 'w', like)
  text = str(caught.value)
  for line in (
      'missing params/stem/kernel float32[3, 3, 3, 16]',
      'missing batch_stats/last_bn/mean float32[64]',
      'unexpected params/extra/kernel float32[2, 2]',
      'params/head/bias is float32[5], wanted float32[4]',
      'params/head/kernel is float16[64, 4], wanted float32[64, 4]',
      'params/last_bn/scale is float64[64], wanted float32[64]'):
    assert line in text
  assert '6 of its arrays' in text and str(tmp_path / 'w') in text


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, like, variables, value):
  flat = {name: array.copy() for name, array in weights.flatten(variables).items()}
  flat['params/head/bias'][2] = value
  flat['batch_stats/last_bn/var'][:2] = value
  write(tmp_path / 'w', flat)
  with pytest.raises(CheckpointError, match='params/head/bias: 1 of 4') as caught:
    models.load(tmp_path / 'w', like)
  assert 'batch_stats/last_bn/var: 2 of 64' in str(caught.value)
  bad = weights.traverse_util.unflatten_dict(flat, sep='/')
  with pytest.raises(CheckpointError, match='params/head/bias'):
    models.save(tmp_path / 'new', bad)
  assert not (tmp_path / 'new').exists()


def test_a_negative_variance_is_refused(tmp_path, like, variables):
  flat = {name: array.copy() for name, array in weights.flatten(variables).items()}
  flat['batch_stats/last_bn/var'][7] = -1e-3
  flat['batch_stats/last_bn/mean'][7] = -1e-3  # A mean may be.
  write(tmp_path / 'w', flat)
  with pytest.raises(CheckpointError, match='last_bn/var: a variance is negative'):
    models.load(tmp_path / 'w', like)


def test_files_that_are_no_weight_files(tmp_path, like, variables):
  with pytest.raises(CheckpointError, match='no such file'):
    models.load(tmp_path / 'absent', like)
  (tmp_path / 'text').write_text('not weights at all, but long enough')
  with pytest.raises(CheckpointError, match='not a readable safetensors'):
    models.load(tmp_path / 'text', like)
  models.save(tmp_path / 'whole', variables)
  (tmp_path / 'cut').write_bytes((tmp_path / 'whole').read_bytes()[:-100])
  with pytest.raises(CheckpointError, match='cut'):
    models.load(tmp_path / 'cut', like)
  (tmp_path / 'file').write_text('')
  with pytest.raises(CheckpointError, match='cannot be written'):
    models.save(tmp_path / 'file' / 'below', variables)


def test_template_is_the_structure_of_init(like):
  module = models.create('mlp_4', num_classes=3)
  made = models.Network(module).init(jax.random.key(0), (4, 4, 1))
  assert jax.tree.map(
      lambda leaf: (leaf.shape, leaf.dtype), models.template(module, (4, 4, 1))
  ) == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made)
  assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(like))
