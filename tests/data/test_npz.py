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
  with pytest.raises(DataError, match=r'set\.npz is not there .*; make it with'):
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
    ('y_test', lambda y: y.astype(object), ['y_test', 'allow_pickle=False']),
    ('x_test', lambda x: x.astype(object), ['x_test', 'allow_pickle=False']),
    ('x_test', lambda x: np.array([{'a': 1}]), ['x_test', 'allow_pickle=False']),
    ('y_train', lambda y: np.array(['cat', 'dog', 'cow'])[y],
     ['labels are text (<U3)', 'np.unique']),
    ('y_test', lambda y: np.array([b'cat', b'dog', b'cow'])[y],
     ['labels are text (|S3)', 'np.unique']),
    ('y_train', lambda y: y == 1, ['integers', 'bool']),
    ('y_test', lambda y: y == 1, ['labels are bool[9]']),
    ('y_test', lambda y: y + 0.5, ['labels are float64[9]']),
    ('y_test', lambda y: y * np.nan, ['labels are float64[9]']),
    ('y_test', lambda y: y * 1j, ['labels are complex128[9]']),
    ('y_train', lambda y: y * 1j, ['integers', 'complex128']),
    ('y_train', lambda y: y.astype('datetime64[s]'), ['integers', 'datetime64']),
    ('y_test', lambda y: y[:5], ['9 images but 5 labels']),
    ('y_test', lambda y: np.int64(3), ['labels are int64[]']),
    ('y_test', lambda y: y[None], ['labels are int64[1, 9]']),
    ('y_train', lambda y: np.zeros_like(y), ["two or more classes", "['0']"]),
    ('y_train', lambda y: y * 2**40, ['labels go up to 2199023255552', 'first 1)']),
    ('y_train', lambda y: (y.astype(np.uint64) + 2**63 + 5), ['first 0)']),
    ('y_test', lambda y: y.astype(np.uint64) + 2**63, ['label 9223372036854775810']),
    ('y_train', lambda y: y[:0], ['integers from 0']),
    ('x_train', lambda x: x[:0], ['0 images but 24 labels']),
    ('x_train', lambda x: x[:, :0], ['(24, 0, 5, 3)']),
    ('x_train', lambda x: x[..., :0], ['(24, 6, 5, 0)']),
    ('x_train', lambda x: x[0, 0, 0, 0], ['shape ()']),
    ('x_train', lambda x: x[0], ['6 images but 24 labels']),
    ('x_train', lambda x: x[None], ['(1, 24, 6, 5, 3)']),
    ('x_train', lambda x: x.view('u1,u1,u1')[..., 0], ['images are [(']),
    ('x_train', lambda x: x.astype('S3'), ['images are |S3', 'Wanted numbers']),
    ('x_train', lambda x: x.astype('U3'), ['images are <U3', 'Wanted numbers']),
    ('x_train', lambda x: x * 1j, ['complex128', 'Wanted numbers']),
    ('x_train', lambda x: (x / 255 > .5).astype(np.uint8), ['0 or 1 of 255']),
    ('x_test', lambda x: x * 0, ['x_test: all pixels are 0 or 1']),
    ('class_names', lambda _: np.array(['a', 'b']), ['label 2 of example', '0..1']),
    ('class_names', lambda _: np.array(['a', 'b', 'a']), ["two classes are called 'a'"]),
    ('class_names', lambda _: np.array(['a', 'b', '']), ["'' cannot name a class"]),
    ('class_names', lambda _: np.array(['a', 'b', 'c\nd']), ['cannot name a class']),
    ('class_names', lambda _: np.array([b'a', b'b', b'\xff']), ['cannot name a class']),
    ('class_names', lambda _: np.array([['a', 'b', 'c']]), ['<U1[1, 3]']),
    ('class_names', lambda _: np.array('abc'), ['<U3[]']),
    ('class_names', lambda _: np.array([.1, .2, .3]), ['float64[3]']),
    ('class_names', lambda _: np.array(['a', 'b', None]), ['allow_pickle=False']),
    ('class_names', lambda _: np.array([], 'U1'), ['two or more classes']),
])
def test_wrong_content(tmp_path, arrays, key, change, words):
  path = save(tmp_path / 'set.npz', arrays, **{key: change(arrays.get(key))})
  with pytest.raises(DataError) as error:
    data.load('npz', data_dir=path)
  assert '\n' not in str(error.value)
  for word in [str(path), *words]:
    assert word in str(error.value)


def values(*numbers, dtype=np.float32):
  return np.resize(np.array(numbers, dtype), (24, 6, 5, 3))


@pytest.mark.parametrize(('images', 'hint', 'white'), [
    (values(0, .5, 1), 'np.round(image * 255).astype(np.uint8)', [0, 128, 255]),
    (values(0, .5, 1, dtype=np.float16), 'np.round(image * 255)', [0, 128, 255]),
    (values(-1, 0, 1), 'np.round((image + 1) * 127.5).astype(np.uint8)', [0, 128, 255]),
    (values(0, 127.6, 255), 'np.round(image).astype(np.uint8)', [0, 128, 255]),
    (values(0, 7, 255, dtype=np.int64), 'image.astype(np.uint8)', [0, 7, 255]),
    (values(0, 7, 200, dtype=np.uint16), 'image.astype(np.uint8)', [0, 7, 200]),
    (values(0, 1, dtype=bool), 'image.astype(np.uint8) * 255', [0, 255]),
    (values(-2.1, .3, 2.6), 'undo the normalisation', None),
    (values(0, 256.), 'undo the normalisation', None),
    (values(0, 256, dtype=np.int32), 'scale them to 0..255', None),
    (values(-1, 255, dtype=np.int16), 'scale them to 0..255', None),
    (values(0, 65535, dtype=np.uint16), 'scale them to 0..255', None),
    (values(0, np.nan), 'NaN or infinite', None),
    (values(0, np.inf), 'NaN or infinite', None),
    (values(-np.inf, 1), 'NaN or infinite', None),
])
def test_hint_gives_the_pixels_that_were_meant(tmp_path, arrays, images, hint, white):
  path = save(tmp_path / 'set.npz', arrays, x_train=images)
  with pytest.raises(DataError) as error:
    data.load('npz', data_dir=path)
  assert hint in str(error.value)
  if white is not None:  # Doing what it says gives the same picture.
    code = str(error.value).split(': ')[-1].removeprefix('stored as ').removeprefix(
        'Black and white are stored as ').removesuffix(' changes none of them')
    code = code.split('are stored as ')[-1]
    pixels = eval(code, {'np': np, 'image': images})
    assert pixels.dtype == np.uint8
    assert pixels.ravel()[:len(white)].tolist() == white


@pytest.mark.parametrize('shape', [
    (4, 32, 32), (3, 32, 32), (1, 28, 28), (2, 16, 16), (4, 6, 5), (3, 64, 48),
    (8, 32, 32), (16, 20, 20)])
def test_channels_first_is_recognised(tmp_path, arrays, shape):
  """RGBA, RGB, grey and more as [N, C, H, W] are never read as rows."""
  images = np.random.default_rng(0).integers(0, 256, (24, *shape), np.uint8)
  path = save(tmp_path / 'set.npz', arrays, x_train=images, x_test=images[:9])
  with pytest.raises(DataError, match=r'looks like \[N, C, H, W\].*transpose'):
    data.load('npz', data_dir=path)
  back = images.transpose(0, 2, 3, 1)
  path = save(tmp_path / 'set.npz', arrays, x_train=back, x_test=back[:9])
  assert data.load('npz', data_dir=path).image_shape == back.shape[1:]


@pytest.mark.parametrize('shape', [
    (6, 5), (6, 5, 1), (6, 5, 2), (6, 5, 4), (4, 4, 4), (3, 4, 4), (5, 5, 5), (1, 9, 1),
    (2, 2, 3), (32, 20, 10)])
def test_other_shapes_are_taken_as_they_are(tmp_path, arrays, shape):
  images = np.random.default_rng(0).integers(0, 256, (24, *shape), np.uint8)
  path = save(tmp_path / 'set.npz', arrays, x_train=images, x_test=images[:9])
  stored = data.load('npz', data_dir=path)
  np.testing.assert_array_equal(stored.test.image.reshape(9, *shape), images[:9])


@pytest.mark.parametrize('dtype', ['<i1', '>i2', '<i4', '>i8', '<u1', '>u2', '<u8'])
def test_labels_of_any_integer_type(tmp_path, arrays, dtype):
  path = save(tmp_path / 'set.npz', arrays, y_test=arrays['y_test'].astype(dtype),
              y_train=np.asfortranarray(arrays['y_train'][:, None].astype(dtype)))
  stored = data.load('npz', data_dir=path)
  np.testing.assert_array_equal(stored.test.label, arrays['y_test'])
  assert stored.test.label.dtype == np.int32


@pytest.mark.parametrize('names', [
    np.array(['cat', 'dog', 'cow']), np.array([b'cat', b'dog', b'cow'])])
def test_names_as_text_or_bytes(tmp_path, arrays, names):
  path = save(tmp_path / 'set.npz', arrays, class_names=names)
  assert data.load('npz', data_dir=path).class_names == ('cat', 'dog', 'cow')


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
