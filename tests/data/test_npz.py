"""npz files: round trip, and every way in which one can be wrong."""

import numpy as np
import pytest

from rkd_jax import data
from rkd_jax.errors import DataError


def save(path, arrays, **changes):
  np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
  return path


@pytest.mark.parametrize('save_with', [np.savez, np.savez_compressed])
def test_round_trip(tmp_path, arrays, save_with):
  path = tmp_path / 'set.npz'
  save_with(path, class_names=np.array(['cat', 'dog', 'cow']), **arrays)
  loaded = data.load('npz', data_dir=path, validation=0)
  assert loaded.class_names == ('cat', 'dog', 'cow')
  np.testing.assert_array_equal(loaded.test.image, arrays['x_test'])
  np.testing.assert_array_equal(loaded.test.label, arrays['y_test'])
  order = np.argsort([image.tobytes() for image in loaded.train.image])
  wanted = np.argsort([image.tobytes() for image in arrays['x_train']])
  np.testing.assert_array_equal(loaded.train.image[order], arrays['x_train'][wanted])
  np.testing.assert_array_equal(loaded.train.label[order], arrays['y_train'][wanted])


def test_grey_images_and_column_labels(tmp_path, arrays):
  path = save(tmp_path / 'set.npz', arrays, x_train=arrays['x_train'][..., 0],
              x_test=arrays['x_test'][..., 0], y_train=arrays['y_train'][:, None])
  loaded = data.load('npz', data_dir=path)
  assert loaded.image_shape == (6, 5, 1)
  np.testing.assert_array_equal(loaded.test.image[..., 0], arrays['x_test'][..., 0])


def test_no_file(tmp_path):
  with pytest.raises(DataError, match=r'set\.npz is not there; make it with'):
    data.load('npz', data_dir=tmp_path / 'set.npz')
  with pytest.raises(DataError, match='is a folder, not a file'):
    data.load('npz', data_dir=tmp_path)


def nan_images(x):
  x = x / 255
  x[0, 0, 0, 0] = np.nan
  return x


@pytest.mark.parametrize(('key', 'change', 'words'), [
    ('y_test', lambda y: None, ['lacks y_test', 'y_train', 'make it with']),
    ('x_train', lambda x: x / 255, ['float64', 'uint8, 0..255']),
    ('x_test', nan_images, ['float64', 'uint8, 0..255', 'NaN or infinite']),
    ('x_train', lambda x: x.astype(np.int64), ['int64', 'uint8']),
    ('x_train', lambda x: x[:-1], ['23 images but 24 labels']),
    ('x_train', lambda x: x.reshape(24, 90), ['(24, 90)', '[N, H, W, C]']),
    ('x_train', lambda x: x.transpose(0, 3, 1, 2), ['(24, 3, 6, 5)', 'transpose']),
    ('x_test', lambda x: x[:, :5], ['(6, 5, 3)', '(5, 5, 3)', 'must match']),
    ('x_test', lambda x: x[:0], ['0 images but 9 labels']),
    ('y_train', lambda y: y + 1, ['1 of those classes', 'start at 1']),
    ('y_test', lambda y: y + 1, ['label 3 of example', '0..2']),
    ('y_train', lambda y: y - 1, ['from -1']),
    ('y_test', lambda y: y - 1, ['label -1 of example']),
    ('y_train', lambda y: y.astype(float), ['integers']),
    ('y_test', lambda y: np.eye(3, dtype=int)[y], ['one-hot']),
    ('y_test', lambda y: y.astype(object), ['allow_pickle=False']),
])
def test_wrong_content(tmp_path, arrays, key, change, words):
  path = save(tmp_path / 'set.npz', arrays, **{key: change(arrays[key])})
  with pytest.raises(DataError) as error:
    data.load('npz', data_dir=path)
  for word in [str(path), *words]:
    assert word in str(error.value)


def test_empty_splits(tmp_path, arrays):
  empty = {'x_test': arrays['x_test'][:0], 'y_test': arrays['y_test'][:0]}
  with pytest.raises(DataError, match='x_test, y_test: no examples'):
    data.load('npz', data_dir=save(tmp_path / 'set.npz', arrays, **empty))


def flip_middle(content):
  middle = len(content) // 2
  return content[:middle] + bytes(~b & 255 for b in content[middle:middle + 40]) + (
      content[middle + 40:])


@pytest.mark.parametrize('damage', [
    lambda content: content[:len(content) // 2],
    lambda content: b'',
    lambda content: b'not an archive at all',
    flip_middle,
])
def test_damaged_file(tmp_path, arrays, damage):
  path = save(tmp_path / 'set.npz', arrays)
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(DataError, match='cannot be read as a .npz file'):
    data.load('npz', data_dir=path)
