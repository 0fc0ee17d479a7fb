"""TFDS directories: small made ones for the errors, the real ones for the content."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from rkd_jax import data
from rkd_jax.data import prepared
from rkd_jax.errors import DataError


def shard(root, split, number):
  folder = root / 'cifar10' / '3.0.2'
  return folder / f'cifar10-{split}.array_record-{number:05d}-of-00002'


def edit_info(root, **changes):
  file = root / 'cifar10' / '3.0.2' / 'dataset_info.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_reads_what_was_written(prepared_dir, arrays):
  stored = prepared.read('cifar10', prepared_dir)
  np.testing.assert_array_equal(stored.train.image, arrays['x_train'])
  np.testing.assert_array_equal(stored.train.label, arrays['y_train'])
  np.testing.assert_array_equal(stored.test.image, arrays['x_test'])
  np.testing.assert_array_equal(stored.test.label, arrays['y_test'])
  assert stored.class_names == ('cat', 'dog', 'cow')
  assert stored.train.image.dtype == np.uint8 and stored.train.label.dtype == np.int32


def test_takes_the_highest_version(prepared_dir, arrays):
  folder = prepared_dir / 'cifar10'
  (folder / '3.0.10').mkdir()
  (folder / '3.0.2.incompleteABC').mkdir()
  for file in (folder / '3.0.2').iterdir():
    (folder / '3.0.10' / file.name).write_bytes(file.read_bytes())
  (folder / '3.0.2' / 'dataset_info.json').unlink()
  stored = prepared.read('cifar10', prepared_dir)
  np.testing.assert_array_equal(stored.test.image, arrays['x_test'])


def test_default_directory_follows_tfds(prepared_dir, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(prepared_dir))
  assert len(prepared.read('cifar10', None).train) == 24


def truncate(root):
  file = shard(root, 'train', 1)
  file.write_bytes(file.read_bytes()[:-40_000])


def flip_bytes(root):
  file = shard(root, 'test', 0)
  content = bytearray(file.read_bytes())
  content[150:400] = bytes(250)
  file.write_bytes(content)


@pytest.mark.parametrize(('damage', 'words'), [
    (truncate, ['cannot be decoded', 'damaged', 'copy it again']),
    (flip_bytes, ['cannot be decoded', 'damaged', 'copy it again']),
    (lambda root: shard(root, 'train', 1).write_bytes(b''), ['cannot be decoded']),
    (lambda root: shard(root, 'test', 1).unlink(),
     ['lacks 1 of its 5 files', 'cifar10-test.array_record-00001-of-00002']),
    (lambda root: edit_info(root, splits=[]), ['wanted train and test']),
    (lambda root: edit_info(root, splits=3), ['dataset_info.json cannot be read']),
    (lambda root: edit_info(root, fileFormat='tfrecord'),
     ["'tfrecord'", "'array_record'"]),
])
def test_damage_is_named_and_nothing_cached(prepared_dir, own_cache, damage, words):
  damage(prepared_dir)
  with pytest.raises(DataError) as error:
    data.load('cifar10', data_dir=prepared_dir)
  for word in [*words, str(prepared_dir / 'cifar10' / '3.0.2'),
               'download_and_prepare']:
    assert word in str(error.value)
  assert not own_cache.exists()


def test_label_out_of_range(prepared_dir, own_cache):
  features = prepared_dir / 'cifar10' / '3.0.2' / 'features.json'
  features.write_text(features.read_text().replace(
      '"numClasses": "3"', '"numClasses": "2"'))
  (features.parent / 'label.labels.txt').write_text('cat\ndog')
  with pytest.raises(DataError, match='label 2 of example 2 is not in 0..1'):
    data.load('cifar10', data_dir=prepared_dir)
  assert not own_cache.exists()


def test_no_such_data_dir(tmp_path):
  with pytest.raises(DataError, match='not a folder.*download_and_prepare'):
    data.load('mnist', data_dir=tmp_path / 'nowhere')
  assert not (tmp_path / 'nowhere').exists()


def test_not_prepared_leaves_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(DataError, match='TensorFlow is not installed') as error:
    data.load('svhn_cropped', data_dir=tmp_path)
  assert str(tmp_path) in str(error.value)
  assert not list(tmp_path.iterdir())


def test_neither_tensorflow_nor_a_second_tfds_import(prepared_dir, own_cache):
  """A cold read imports of TFDS what decodes records; a cached one imports nothing."""
  program = (
      'import sys; from rkd_jax import data\n'
      'data.load("cifar10", data_dir=sys.argv[1])\n'
      'print("tensorflow" in sys.modules, "tensorflow_datasets" in sys.modules)')
  run = lambda: subprocess.run(
      [sys.executable, '-c', program, str(prepared_dir)], check=True,
      capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[2]).stdout
  assert run().split() == ['False', 'True']
  assert run().split() == ['False', 'False']


# Counts, classes and train pixel statistics as published with the data sets.
REAL = {
    'mnist': (60_000, (28, 28, 1), '7', [0.1307], [0.3081]),
    'fashion_mnist': (60_000, (28, 28, 1), 'Sneaker', [0.2860], [0.3530]),
    'cifar10': (50_000, (32, 32, 3), 'horse', [0.4914, 0.4822, 0.4465],
                [0.2470, 0.2435, 0.2616]),
}


@pytest.mark.parametrize('name', [
    'mnist', 'cifar10', pytest.param('fashion_mnist', marks=pytest.mark.slow)])
def test_real_data(name, data_dir):
  count, shape, seventh, mean, deviation = REAL[name]
  stored = prepared.read(name, pathlib.Path(data_dir))
  assert stored.train.image.shape == (count, *shape)
  assert stored.test.image.shape == (10_000, *shape)
  assert len(stored.class_names) == 10 and stored.class_names[7] == seventh
  if name != 'mnist':  # The others are balanced.
    assert set(np.bincount(stored.train.label)) == {count // 10}
    assert set(np.bincount(stored.test.label)) == {1000}
  for channel in range(shape[2]):
    histogram = np.bincount(stored.train.image[..., channel].ravel(), minlength=256)
    level, weight = np.arange(256) / 255, histogram / histogram.sum()
    seen_mean = level @ weight
    assert seen_mean == pytest.approx(mean[channel], abs=6e-5)
    assert np.sqrt((level - seen_mean)**2 @ weight) == pytest.approx(
        deviation[channel], abs=6e-5)


def test_real_order_and_cache(data_dir):
  """Stored order is TFDS' own, cold or cached."""
  import tensorflow_datasets as tfds
  source = tfds.data_source('cifar10', split='train', data_dir=data_dir)
  stored = prepared.read('cifar10', pathlib.Path(data_dir))
  again = prepared.read('cifar10', pathlib.Path(data_dir))
  assert source[0]['id'] in ('train_16399', b'train_16399')
  for index in (0, 999, 1000, 49_999):
    for each in (stored, again):
      np.testing.assert_array_equal(each.train.image[index], source[index]['image'])
      assert each.train.label[index] == source[index]['label']
