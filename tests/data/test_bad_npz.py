"""npz files that were forged: headers, sizes, pickles, and what is no npz file."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from rkd_jax import data
from rkd_jax.errors import DataError, RkdError


def member(array=None, *, shape=None, descr='|u1', content=b'', version=(1, 0)):
  """Bytes of a .npy file with a header of one's own."""
  stream = io.BytesIO()
  if array is not None:
    np.lib.format.write_array(stream, array)
  else:
    writer = {(1, 0): np.lib.format.write_array_header_1_0,
              (2, 0): np.lib.format.write_array_header_2_0}[version]
    writer(stream, {'descr': descr, 'fortran_order': False, 'shape': shape})
    stream.write(content)
  return stream.getvalue()


class Bomb:
  """Leaves a mark when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def forged(path, arrays, entries, packing=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, 'w', packing) as archive:
    contents = {name: member(array) for name, array in arrays.items()} | entries
    for name, content in contents.items():
      if content is not None:
        archive.writestr(f'{name}.npy', content)
  return path


FORGED = {
    '10**13 images': (member(shape=(10**13, 32, 32, 3)), 'claims uint8[10000000000000'),
    '10**30 images': (member(shape=(10**30, 6, 5, 3)), 'claims uint8[1000000000000000'),
    'one image more': (member(shape=(25, 6, 5, 3), content=bytes(2160)), '2,250 bytes'),
    'one image less': (member(shape=(23, 6, 5, 3), content=bytes(2160)), '2,070 bytes'),
    'a negative length': (member(shape=(-24, 6, 5, 3), content=bytes(24 * 90)), 'claims'),
    'two of them': (member(shape=(-24, -6, 5, 3), content=bytes(24 * 90)), 'claims'),
    'a header of 60,000 bytes': (b'\x93NUMPY\x01\x00\x60\xea' + b' ' * 60_000, 'header'),
    'a header that is no literal': (b'\x93NUMPY\x01\x00\x40\x00'
                                    + b'__import__("os").abort()'.ljust(64), 'header'),
    'a deep header': (b'\x93NUMPY\x01\x00\x10\x27' + b'(' * 10_000, 'read as'),
    'an open header': (b'\x93NUMPY\x01\x00\xff\x00{', 'read as'),
    'keys that are missing': (b'\x93NUMPY\x01\x00\x10\x00' + b"{'a': 1}".ljust(16),
                              'read as'),
    'version 9': (b'\x93NUMPY\x09\x00' + bytes(100), 'version'),
    'version 3': (b'\x93NUMPY\x03\x00' + bytes(100), 'version'),
    'no magic': (bytes(200), 'magic'),
    'nothing': (b'', 'read as'),
    'a dtype that is none': (member(shape=(24, 6, 5, 3), descr='|q7'), 'read as'),
    'a dtype of many fields': (member(shape=(24,), descr=[('a', '<f4'), ('b', 'O')],
                                      content=bytes(300)), 'Python objects'),
}


@pytest.mark.parametrize('name', FORGED)
@pytest.mark.parametrize('packing', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_forged_headers(tmp_path, arrays, name, packing):
  content, words = FORGED[name]
  path = forged(tmp_path / 'set.npz', arrays, {'x_train': content}, packing)
  with pytest.raises(DataError) as error:
    data.load('npz', data_dir=path)
  assert words in str(error.value) and str(path) in str(error.value)


def test_version_2_of_the_format_is_read(tmp_path, arrays):
  content = member(shape=(9, 6, 5, 3), content=arrays['x_test'].tobytes(), version=(2, 0))
  path = forged(tmp_path / 'set.npz', arrays, {'x_test': content})
  np.testing.assert_array_equal(
      data.load('npz', data_dir=path).test.image, arrays['x_test'])


@pytest.mark.parametrize('key', ['x_train', 'y_test', 'class_names'])
def test_a_pickle_is_never_run(tmp_path, arrays, key):
  mark = tmp_path / 'was here'
  objects = np.array([Bomb(mark), None, None], object)
  path = forged(tmp_path / 'set.npz', arrays, {key: member(objects)})
  assert Bomb(mark).__reduce__()[1] == (str(mark),)  # It would.
  with pytest.raises(DataError, match=f'{key} holds Python objects'):
    data.load('npz', data_dir=path)
  path.write_bytes(pickle.dumps(Bomb(mark)))
  with pytest.raises(DataError, match='it is a Python pickle'):
    data.load('npz', data_dir=path)
  assert not mark.exists()


def test_bomb_that_unpacks_to_more_than_memory(tmp_path, arrays, monkeypatch):
  monkeypatch.setattr('os.sysconf', lambda name: 1000)  # A megabyte.
  images = np.zeros((24, 250, 250, 1), np.uint8)
  path = forged(tmp_path / 'set.npz', arrays, {'x_train': member(images)},
                zipfile.ZIP_DEFLATED)
  assert path.stat().st_size < 20_000
  with pytest.raises(DataError, match='its arrays need .* this machine has'):
    data.load('npz', data_dir=path)


def test_sizes_that_no_compression_reaches(tmp_path, arrays):
  """A central directory that claims 4 GB for a member of some bytes."""
  path = forged(tmp_path / 'set.npz', arrays, {})
  content = bytearray(path.read_bytes())
  entry = content.index(b'PK\x01\x02')
  content[entry + 24:entry + 28] = b'\xf0\xff\xff\xff'
  path.write_bytes(content)
  with pytest.raises(DataError, match='x_train.npy claims 4,294,967,280 bytes'):
    data.load('npz', data_dir=path)


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_two_arrays_of_one_name(tmp_path, arrays):
  path = forged(tmp_path / 'set.npz', arrays, {})
  with zipfile.ZipFile(path, 'a') as archive:
    archive.writestr('x_train.npy', member(arrays['x_train'][::-1]))
  with pytest.raises(DataError, match='two of its arrays have one name'):
    data.load('npz', data_dir=path)


def test_encrypted_member(tmp_path, arrays):
  path = forged(tmp_path / 'set.npz', arrays, {})
  content = bytearray(path.read_bytes())
  for mark, offset in ((b'PK\x03\x04', 6), (b'PK\x01\x02', 8)):
    content[content.index(mark) + offset] |= 1
  path.write_bytes(content)
  with pytest.raises(DataError, match='encrypted'):
    data.load('npz', data_dir=path)


@pytest.mark.parametrize(('make', 'words'), [
    (os.mkfifo, 'is a named pipe'), (lambda path: path.mkdir(), 'is a folder'),
    (lambda path: path.symlink_to(path), 'is a link that leads in a circle'),
    (lambda path: path.symlink_to('gone'), 'is a link that leads nowhere'),
    (lambda path: path.symlink_to('/dev/zero'), 'is a device'),
    (lambda path: path.touch(), 'it is empty'),
    (lambda path: path.write_bytes(b'<html><head>Not found'), 'it is an HTML page'),
    (lambda path: path.write_bytes(b'version https://git-lfs.github.com/spec/v1\n'),
     'run `git lfs pull`'),
    (lambda path: path.write_bytes(bytes(9999)), 'nothing but zeros'),
    (lambda path: path.write_bytes(b'\x93NUMPY\x01\x00'), 'one NumPy array'),
    (lambda path: path.write_bytes(b'\x89HDF\r\n\x1a\n'), 'an HDF5 file'),
    (lambda path: path.write_bytes(b'\x1f\x8b\x08'), 'a gzip archive'),
    (lambda path: path.write_bytes(b'{"a": 1}'), 'JSON text'),
    (lambda path: path.write_bytes(b'PK\5\6' + bytes(18)), 'lacks x_train'),
    (lambda path: path.write_bytes(b'PK\3\4' + bytes(40)), 'a zip archive'),
])
def test_what_is_no_npz_is_named(tmp_path, make, words):
  make(tmp_path / 'set.npz')
  with pytest.raises(DataError) as error:
    data.load('npz', data_dir=tmp_path / 'set.npz')
  assert words in str(error.value) and 'set.npz' in str(error.value)


@pytest.mark.parametrize('path', ['', '\0', 'x' * 300, '/dev/null/x', 'a\0b.npz'])
def test_strange_paths(path):
  with pytest.raises(RkdError) as error:
    data.load('npz', data_dir=path)
  assert '\n' not in str(error.value)
