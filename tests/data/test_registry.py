"""load(): names, settings, and which examples go where."""

import jax
import numpy as np
import pytest

from rkd_jax import data
from rkd_jax.data import digits
from rkd_jax.data.splits import stratified_order
from rkd_jax.errors import ConfigError, DataError


def rows(split):
  """Each example as bytes, so that examples can be compared as set members."""
  return [image.tobytes() + bytes([label])
          for image, label in zip(split.image, split.label, strict=True)]


@pytest.fixture
def npz_file(tmp_path, arrays):
  np.savez(tmp_path / 'set.npz', **arrays)
  return tmp_path / 'set.npz'


def test_every_name_has_a_line():
  assert list(data.describe()) == list(data.names())
  assert all(line and '\n' not in line for line in data.describe().values())


def test_unknown_name_offers_the_nearest():
  with pytest.raises(ConfigError, match="did you mean 'cifar10'"):
    data.load('cifar-10')


@pytest.mark.parametrize('name', ['', 'CIFAR10', '../npz', None, 3, ['npz'], b'npz'])
def test_names_that_are_none(name):
  with pytest.raises(ConfigError, match='unknown data set'):
    data.load(name)


@pytest.mark.parametrize('data_dir', [3, b'/tmp', ['a'], 1.5, True])
@pytest.mark.parametrize('name', ['npz', 'digits', 'mnist'])
def test_data_dir_that_is_no_path(name, data_dir):
  with pytest.raises(ConfigError, match='data_dir must be a path'):
    data.load(name, data_dir=data_dir)


@pytest.mark.parametrize('data_dir', ['gs://bucket/data', 's3://bucket', 'http://a/b.npz'])
def test_stores_elsewhere(data_dir):
  with pytest.raises(ConfigError, match='data_dir'):
    data.load('folder', data_dir=data_dir)


@pytest.mark.parametrize('name', ['npz', 'folder', 'tiny_imagenet', 'mnist'])
@pytest.mark.parametrize('error', [PermissionError(13, 'Permission denied', '/x/y'),
                                   OSError(5, 'Input/output error'), MemoryError()])
def test_trouble_below_is_told(name, error, tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise error
  monkeypatch.setattr('pathlib.Path.is_dir', fail)
  monkeypatch.setattr('rkd_jax.untrusted.open_file', fail)
  with pytest.raises(DataError) as caught:
    data.load(name, data_dir=tmp_path)
  assert (getattr(error, 'strerror', None) or 'memory') in str(caught.value)
  assert '/x/y' in str(caught.value) or error.args[:1] != (13,)


@pytest.mark.parametrize('name', ['npz', 'folder', 'tiny_imagenet'])
def test_data_dir_is_asked_for(name):
  with pytest.raises(ConfigError, match='needs data_dir'):
    data.load(name)


def test_fields(npz_file, arrays):
  loaded = data.load('npz', data_dir=str(npz_file))
  assert (loaded.name, loaded.num_classes) == ('npz', 3)
  assert loaded.class_names == ('0', '1', '2')
  assert loaded.image_shape == (6, 5, 3)
  for split in (loaded.train, loaded.validation, loaded.test):
    assert split.image.dtype == np.uint8 and split.label.dtype == np.int32
    assert split.image.flags.c_contiguous
    assert split.image.shape[1:] == loaded.image_shape
  np.testing.assert_array_equal(loaded.test.image, arrays['x_test'])


@pytest.mark.parametrize(('fraction', 'held'), [
    (0.0, 0), (0.01, 1), (0.1, 2), (0.5, 12), (0.95, 23)])
def test_validation_is_disjoint_and_complete(npz_file, arrays, fraction, held):
  loaded = data.load('npz', data_dir=npz_file, validation=fraction)
  assert len(loaded.validation) == held and len(loaded.train) == 24 - held
  both = rows(loaded.train) + rows(loaded.validation)
  stored = rows(data.Split(arrays['x_train'], arrays['y_train']))
  assert sorted(both) == sorted(stored)


@pytest.mark.parametrize('fraction', [
    -0.1, 1.0, 1.5, float('nan'), 0.99, '0.1', None, True, 1j, [0.1], float('inf')])
def test_bad_validation(npz_file, fraction):
  with pytest.raises(ConfigError, match='validation'):
    data.load('npz', data_dir=npz_file, validation=fraction)


@pytest.mark.parametrize('setting', ['train_examples', 'test_examples'])
@pytest.mark.parametrize('count', [
    0, -1, 23, 2.0, '5', True, [3], float('nan'), 10**30])
def test_bad_counts(npz_file, setting, count):
  with pytest.raises(ConfigError, match=setting):
    data.load('npz', data_dir=npz_file, **{setting: count})
  assert len(data.load('npz', data_dir=npz_file, train_examples=22).train) == 22


def test_subsets_are_nested_and_validation_stays():
  whole = data.load('digits')
  for count in (1, 37, 500):
    part = data.load('digits', train_examples=count, test_examples=min(count, 300))
    assert rows(part.train) == rows(whole.train)[:count]
    assert rows(part.validation) == rows(whole.validation)
    chosen = set(rows(part.test))
    # The chosen ones, in the order in which the whole split has them.
    assert rows(part.test) == [row for row in rows(whole.test) if row in chosen]


def test_subsets_keep_the_classes():
  whole = data.load('digits')
  for split in (whole.train, whole.validation, whole.test):
    share = np.bincount(split.label) / len(split)
    np.testing.assert_allclose(share, 0.1, atol=0.01)
  small = data.load('digits', train_examples=60, test_examples=30)
  assert np.bincount(small.train.label, minlength=10).min() >= 4
  assert np.bincount(small.test.label, minlength=10).min() >= 2


def test_the_order_is_frozen():
  """Another NumPy must give the same subsets, or results stop being comparable."""
  label = np.array([0, 1, 1, 0, 1, 1])
  # By hand from MT19937: shuffled = RandomState(3).permutation(6), then
  # jitter = random_sample(6); position = (rank in class + jitter) / class size.
  random = np.random.RandomState(3)
  shuffled, jitter = random.permutation(6).tolist(), random.random_sample(6)
  position = {}
  for value, size in ((0, 2), (1, 4)):
    ranked = [i for i in shuffled if label[i] == value]
    for rank, i in enumerate(ranked):
      position[i] = (rank + jitter[i]) / size
  wanted = sorted(range(6), key=position.get)
  assert stratified_order(label, 3).tolist() == wanted
  assert stratified_order(label, 3).tolist() == [5, 3, 4, 1, 0, 2]


@pytest.mark.parametrize('seed', range(5))
def test_every_prefix_is_balanced(seed):
  label = np.repeat([0, 1, 2], [50, 20, 3])
  order = stratified_order(label, seed)
  assert sorted(order) == list(range(73))
  for value, size in enumerate((50, 20, 3)):
    seen = np.cumsum(label[order] == value)
    # One member in each interval of length 1/size; other classes stray by one each.
    share = np.arange(1, 74) * size / 73
    assert np.abs(seen - share).max() <= 1 + 3 * size / 73 + 1e-9


def test_digits_are_scikit_learns():
  from fractions import Fraction

  from sklearn.datasets import load_digits
  bunch = load_digits()
  loaded = data.load('digits', validation=0)
  assert len(loaded.train) == 1438 and len(loaded.test) == 359
  assert loaded.image_shape == (8, 8, 1) and loaded.num_classes == 10
  table = [int(Fraction(255 * level, 16) + Fraction(1, 2)) for level in range(17)]
  assert len(set(table)) == 17 and table[0] == 0 and table[16] == 255
  assert [round(16 * value / 255) for value in table] == list(range(17))
  image = np.array(table, np.uint8)[bunch.images.astype(int)]
  wanted = rows(data.Split(image, bunch.target))
  assert sorted(rows(loaded.train) + rows(loaded.test)) == sorted(wanted)
  np.testing.assert_array_equal(digits.to_uint8(np.arange(17.0)), table)


def test_a_split_is_a_pytree():
  split = data.load('digits', train_examples=5).train
  on_device = jax.device_put(split)
  assert isinstance(on_device, data.Split) and len(on_device) == 5
  np.testing.assert_array_equal(on_device.image, split.image)
