"""Weight files from elsewhere: each is loaded right or refused in words."""

import json
import os
import struct

import jax
import numpy as np
import pytest
import safetensors.numpy

from rkd_jax import models
from rkd_jax.errors import CheckpointError, ConfigError, RkdError
from rkd_jax.models import weights

LIKE = models.template(models.create('mlp_4', num_classes=3), (4, 4, 1))
FLAT = {name: np.full(leaf.shape, 0.5, np.float32)
        for name, leaf in weights.flatten(LIKE).items()}
WHOLE = safetensors.numpy.save(FLAT)
SIZE = 8 + struct.unpack('<Q', WHOLE[:8])[0]


def with_header(change=None, text=None, length=None, data=None):
  """The file with another header: JSON that was changed, or any bytes."""
  header = json.loads(WHOLE[8:SIZE])
  if change is not None:
    header = change(header) or header
  text = json.dumps(header).encode() if text is None else text
  return (struct.pack('<Q', len(text) if length is None else length) + text
          + (WHOLE[SIZE:] if data is None else data))


def put(name, **fields):
  return lambda header: header[name].update(fields)


HEAD = 'params/head/bias'
LAST = len(WHOLE) - SIZE
FILES = {
    'empty': (b'', ['it is empty']),
    'one byte': (b'x', ['not a readable safetensors']),
    'a page': (b'<!DOCTYPE html>\n<html lang="en">' + bytes(99), ['it is an HTML page']),
    'a page after blanks': (b'\n  <HTML><body>Sign in', ['it is an HTML page']),
    'an error in XML': (b'<?xml version="1.0"?><Error>AccessDenied', ['an XML document']),
    'a pointer': (b'version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n',
                  ['Git LFS pointer', 'git lfs pull']),
    'JSON': (b'{"error": "not found"}', ['it is JSON text']),
    'zeros': (bytes(5000), ['nothing but zeros']),
    'a torch file': (b'PK\x03\x04' + bytes(99), ['zip archive', 'models.read_torch']),
    'an old torch file': (b'\x80\x02\x8a\x0al\xfc' + bytes(99),
                          ['Python pickle', 'models.read_torch']),
    'gzip': (b'\x1f\x8b\x08' + bytes(99), ['gzip']),
    'HDF5': (b'\x89HDF\r\n\x1a\n' + bytes(99), ['HDF5']),
    'npy': (b'\x93NUMPY\x01\x00' + bytes(99), ['.npy']),
    'a picture': (b'\x89PNG\r\n\x1a\n' + bytes(99), ['PNG']),
    'tar': (bytes(1) + bytes(256) + b'ustar' + b'x' * 300, ['tar archive']),
    'cut in the length': (WHOLE[:5], ['was it cut off']),
    'cut after the length': (WHOLE[:8], ['not a readable']),
    'cut in the header': (WHOLE[:SIZE - 9], ['was it cut off']),
    'cut in the data': (WHOLE[:-1], ['was it cut off']),
    'without data': (WHOLE[:SIZE], ['was it cut off']),
    'longer': (WHOLE + b'\0', ['not a readable']),
    'a header of 2**63': (with_header(length=2**63), ['not a readable']),
    'a header of a terabyte': (with_header(length=2**40 - 1), ['not a readable']),
    'a header of nothing': (with_header(length=0), ['not a readable']),
    'a header that is no JSON': (with_header(text=b'{"a": '), ['not a readable']),
    'a header that is a list': (with_header(text=b'[1, 2]  '), ['not a readable']),
    'a deep header': (with_header(text=b'{"a":' * 50_000), ['not a readable']),
    'a header of bytes': (with_header(text=b'{"\xff\xfe": 1}'), ['not a readable']),
    'offsets beyond the file': (with_header(put(HEAD, data_offsets=[0, 10**13])),
                                ['not a readable']),
    'offsets below 0': (with_header(put(HEAD, data_offsets=[-4, 8])), ['not a readable']),
    'offsets backwards': (with_header(put(HEAD, data_offsets=[12, 0])),
                          ['not a readable']),
    'offsets that overlap': (with_header(put(HEAD, data_offsets=[4, 16])),
                             ['not a readable']),
    '10**13 values': (with_header(put(HEAD, shape=[10**13])), ['not a readable']),
    '2**64 values': (with_header(put(HEAD, shape=[2**32, 2**32, 3])), ['not a readable']),
    'a negative shape': (with_header(put(HEAD, shape=[-3])), ['not a readable']),
    'a shape of words': (with_header(put(HEAD, shape=['a'])), ['not a readable']),
    'an unknown dtype': (with_header(put(HEAD, dtype='Q7')), ['not a readable']),
    'an integer': (with_header(put(HEAD, dtype='I32')), [f'{HEAD} is int32[3], wanted']),
    'another shape': (with_header(put(HEAD, shape=[3, 1])), [f'{HEAD} is float32[3, 1]']),
    'no fields': (with_header(lambda h: h.update({HEAD: {}})), ['not a readable']),
    'metadata of numbers': (with_header(lambda h: h.update({'__metadata__': {'a': 1}})),
                            ['not a readable']),
    'another name': (with_header(lambda h: h.update({'x': h.pop(HEAD)})),
                     [f'missing {HEAD}', 'unexpected x float32[3]']),
    'a name for the terminal': (
        with_header(lambda h: h.update({'\x1b[2J\n': h.pop(HEAD)})), [r"'\x1b[2J\n'"]),
    'a name upwards': (with_header(lambda h: h.update({'../../etc': h.pop(HEAD)})),
                       ['unexpected ../../etc']),
    'arrays of another network': (safetensors.numpy.save(
        {f'layer{i}': np.zeros(1, np.float32) for i in range(5000)}),
                                  ['5004 of its arrays do not fit', 'and 4804 more']),
    'no arrays': (safetensors.numpy.save({}), ['4 of its arrays', f'missing {HEAD}']),
    'NaN': (safetensors.numpy.save(FLAT | {HEAD: np.float32([0, np.nan, 0])}),
            [f'{HEAD}: 1 of 3 values are NaN']),
    'infinity': (safetensors.numpy.save(FLAT | {HEAD: np.float32([0, np.inf, 0])}),
                 [f'{HEAD}: 1 of 3']),
}


@pytest.mark.parametrize('name', FILES)
def test_bad_file_is_named(tmp_path, name):
  content, words = FILES[name]
  path = tmp_path / 'w.safetensors'
  path.write_bytes(content)
  with pytest.raises(CheckpointError) as error:
    models.load(path, LIKE)
  text = str(error.value)
  for word in [str(path), *words]:
    assert word in text
  assert text.isprintable() or '\n  ' in text and '\x1b' not in text
  assert len(text) < 12_000


@pytest.mark.parametrize(('make', 'words'), [
    (os.mkfifo, 'is a named pipe'), (lambda path: path.mkdir(), 'is a folder'),
    (lambda path: path.symlink_to(path), 'in a circle'),
    (lambda path: path.symlink_to('gone'), 'leads nowhere'),
    (lambda path: path.symlink_to('/dev/zero'), 'is a device'),
    (lambda path: None, 'no such file')])
@pytest.mark.parametrize('read', [
    lambda path: models.load(path, LIKE), models.read_torch])
def test_what_is_no_file_is_named(tmp_path, make, words, read):
  make(tmp_path / 'w')
  with pytest.raises(CheckpointError) as error:
    read(tmp_path / 'w')
  assert words in str(error.value) and str(tmp_path / 'w') in str(error.value)


@pytest.mark.parametrize(('content', 'words'), [
    (b'', 'it is empty'), (b'<html>', 'HTML page'), (WHOLE, 'read it with models.load'),
    (b'version https://git-lfs.github.com/spec/v1', 'git lfs pull'),
    (bytes(999), 'nothing but zeros'), (b'\x89HDF\r\n\x1a\n', 'HDF5'),
    (b'{"a": 1}', 'JSON'), (b'\x1f\x8b\x08', 'gzip'), (b'\x93NUMPY', '.npy')])
def test_what_is_no_torch_file_is_named(tmp_path, content, words):
  """Before torch is imported, so that it is told without torch as well."""
  (tmp_path / 'w.pt').write_bytes(content)
  with pytest.raises(CheckpointError) as error:
    models.read_torch(tmp_path / 'w.pt')
  assert words in str(error.value)


class Module:
  """What looks like a torch.nn.Module."""

  def state_dict(self):
    return {}


@pytest.mark.parametrize(('value', 'words'), [
    ('teacher.pt', "got the path 'teacher.pt': give models.read_torch(path)"),
    (b'teacher.pt', 'models.read_torch'), (os.path, 'got module'),
    (Module(), 'got a Module: give its .state_dict()'),
    ({'state_dict': {'conv1.weight': 1}}, "under 'state_dict': give that entry"),
    ({'net': {}, 'epoch': 3}, "under 'net'"), ({'model': {}}, "under 'model'"),
    ([('conv1.weight', 1)], 'got list'), (None, 'got NoneType'), (3, 'got int'),
    (np.zeros(3), 'got ndarray'), ({3: np.zeros(3)}, 'names of a state dict are text'),
    ({'conv1.weight': [1, 2]}, "'conv1.weight' is a list, not a tensor"),
    ({'conv1.weight': 'x'}, 'is a str'), ({'conv1.weight': None}, 'is a NoneType'),
    ({'conv1.weight': np.array(['x'])}, 'is a <U1'),
    ({'conv1.weight': np.array([{}])}, 'is a object'),
    ({'conv1.weight': np.ones(3) * 1j}, 'is a complex128'),
    ({'conv1.weight': np.ones((1, 1, 1, 1)), 'module.conv1.weight': np.ones(1)},
     'no classifier'),
    ({'linear.bias': np.ones(1), 'fc.bias': np.ones(1)},
     "two entries of the state dict stand for 'params/head/bias'"),
    ({'conv1.weight': np.ones((8, 3, 3, 3)), 'linear.weight': np.ones((1, 8))},
     'num_classes must be >= 2'),
    ({'conv1.weight': np.ones(()), 'linear.weight': np.ones((2, 8))}, 'no classifier'),
    ({}, 'no classifier'),
])
def test_what_is_no_state_dict_is_named(value, words):
  with pytest.raises(RkdError) as error:
    models.from_torch('resnet8', value)
  assert words in str(error.value)


def test_a_path_is_refused_whatever_its_type(tmp_path):
  with pytest.raises(ConfigError, match='models.read_torch'):
    models.from_torch('resnet8', tmp_path)


def test_every_flipped_byte_is_named_or_changes_nothing(tmp_path):
  """Files of this library carry a digest in their metadata."""
  path = tmp_path / 'w.safetensors'
  variables = weights.traverse_util.unflatten_dict(FLAT, sep='/')
  models.save(path, variables)
  content, random, refused = path.read_bytes(), np.random.default_rng(0), 0
  for at in [*random.integers(0, len(content), 250), len(content) - 1]:
    path.write_bytes(content[:at] + bytes([content[at] ^ 1 << int(random.integers(8))])
                     + content[at + 1:])
    try:
      found = weights.flatten(models.load(path, LIKE))
    except CheckpointError as error:
      refused += str(path) in str(error)
      continue
    for name, array in FLAT.items():
      np.testing.assert_array_equal(found[name], array)
  assert refused > 200
  for length in random.integers(0, len(content), 50):
    path.write_bytes(content[:length])
    with pytest.raises(CheckpointError, match=r'w\.safetensors'):
      models.load(path, LIKE)


def test_structure_of_the_good_file(tmp_path):
  (tmp_path / 'w').write_bytes(WHOLE)
  found = models.load(tmp_path / 'w', LIKE)
  jax.tree.map(lambda a: np.testing.assert_array_equal(a, 0.5), found)
