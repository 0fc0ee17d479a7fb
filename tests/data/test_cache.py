"""The cache returns what was decoded, or decodes again."""

import json
import os
import warnings

import numpy as np
import pytest

from rkd_jax.data import cache
from rkd_jax.data.dataset import Split, Stored
from rkd_jax.errors import ConfigError, DataError

KEY = lambda: 'abc'


class Decoder:
  """Makes one data set and counts how often it was asked."""

  def __init__(self):
    random = np.random.default_rng(1)
    part = lambda n: Split(random.integers(0, 256, (n, 4, 4, 1), np.uint8),
                           random.integers(0, 2, n).astype(np.int32))
    self.stored = Stored(part(11), part(5), ('a', 'b'))
    self.calls = 0

  def __call__(self):
    self.calls += 1
    return self.stored


def assert_same(seen, wanted):
  for a, b in ((seen.train, wanted.train), (seen.test, wanted.test)):
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.label, b.label)
    assert a.image.dtype == np.uint8 and a.label.dtype == np.int32
    assert a.image.flags.c_contiguous
  assert seen.class_names == wanted.class_names


def test_second_read_does_not_decode(own_cache):
  decoder = Decoder()
  for _ in range(2):
    assert_same(cache.through('set-1', lambda: 'abc', decoder), decoder.stored)
  assert decoder.calls == 1
  assert os.listdir(own_cache) == ['set-1-abc']  # No temporary folder is left.
  cache.through('set-1', lambda: 'abd', decoder)
  assert decoder.calls == 2


def flip_one_pixel(entry):
  file = entry / 'train_image.npy'
  content = bytearray(file.read_bytes())
  content[-7] ^= 1
  file.write_bytes(content)


def other_dtype(entry):
  np.save(entry / 'train_image.npy', np.zeros((11, 4, 4, 1), np.float32))


def other_class_names(*names):
  def damage(entry):
    meta = json.loads((entry / 'meta.json').read_text())
    (entry / 'meta.json').write_text(json.dumps(meta | {'class_names': names}))
  return damage


def exchange_labels(entry):
  """Both files are whole, only not in their places."""
  for name, other in (('train_label', 'x'), ('test_label', 'train_label'),
                      ('x', 'test_label')):
    (entry / f'{name}.npy').rename(entry / f'{other}.npy')


@pytest.mark.parametrize('damage', [
    flip_one_pixel, other_dtype, exchange_labels,
    other_class_names('a'), other_class_names('b', 'a'), other_class_names(1, 2),
    lambda entry: (entry / 'test_label.npy').unlink(),
    lambda entry: (entry / 'train_image.npy').write_bytes(b'\x93NUMPY'),
    lambda entry: (entry / 'meta.json').write_text('{"class_names": ["a"'),
    lambda entry: (entry / 'meta.json').write_text('[]'),
])
def test_damaged_entry_is_rebuilt(own_cache, damage):
  decoder = Decoder()
  cache.through('set', KEY, decoder)
  damage(own_cache / 'set-abc')
  with pytest.warns(UserWarning, match='damaged'):
    assert_same(cache.through('set', KEY, decoder), decoder.stored)
  assert decoder.calls == 2
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert_same(cache.through('set', KEY, decoder), decoder.stored)
  assert decoder.calls == 2
  assert os.listdir(own_cache) == ['set-abc']


def test_entry_without_meta_is_replaced(own_cache):
  decoder = Decoder()
  (own_cache / 'set-abc').mkdir(parents=True)
  (own_cache / 'set-abc' / 'train_image.npy').write_bytes(b'half')
  for _ in range(2):
    assert_same(cache.through('set', KEY, decoder), decoder.stored)
  assert decoder.calls == 1


def test_what_a_killed_writer_left_goes_after_a_day(own_cache):
  left, young = (own_cache / f'.set-abc.{n}' for n in (1, 2))
  for path in (left, young):
    path.mkdir(parents=True)
    (path / 'train_image.npy').write_bytes(b'half')
  os.utime(left, (0, 0))
  cache.through('set', KEY, Decoder())
  assert sorted(os.listdir(own_cache)) == ['.set-abc.2', 'set-abc']


def test_no_home_is_named(monkeypatch):
  monkeypatch.delenv('RKD_CACHE_DIR')
  monkeypatch.setattr('os.path.expanduser', lambda path: path)
  with pytest.raises(ConfigError, match='no home directory.*RKD_CACHE_DIR'):
    cache.through('set', KEY, Decoder())


def test_unwritable_cache_warns_once_and_works(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('RKD_CACHE_DIR', str(tmp_path / 'file' / 'cache'))
  decoder = Decoder()
  with pytest.warns(UserWarning, match='Set RKD_CACHE_DIR') as caught:
    assert_same(cache.through('set', KEY, decoder), decoder.stored)
  assert len(caught) == 1


def test_failed_decoding_writes_nothing(own_cache):
  def fail():
    raise KeyError('decoder')
  with pytest.raises(KeyError, match='decoder'):
    cache.through('set', KEY, fail)
  assert not own_cache.exists()


def test_another_process_that_was_first_wins(own_cache):
  decoder = Decoder()
  def slow():
    cache.through('set', KEY, decoder)  # As another process would, in the meantime.
    return decoder.stored
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert_same(cache.through('set', KEY, slow), decoder.stored)
  assert os.listdir(own_cache) == ['set-abc']


def test_fingerprint_follows_names_and_content_alone(tmp_path):
  file = tmp_path / 'a.bin'
  file.write_bytes(b'1234')
  seen = {cache.fingerprint(tmp_path, [file])}
  os.utime(file, ns=(0, 0))
  assert seen == {cache.fingerprint(tmp_path, [file])}
  for content in (b'1235', b'12345', b''):  # Of the same size, and of others.
    file.write_bytes(content)
    os.utime(file, ns=(0, 0))
    seen.add(cache.fingerprint(tmp_path, [file]))
  file.write_bytes(b'1234')
  seen.add(cache.fingerprint(tmp_path, [file], text='more'))
  seen.add(cache.fingerprint(tmp_path, [file.rename(tmp_path / 'b.bin')]))
  assert len(seen) == 6


def test_source_that_changes_under_the_decoder_is_refused(own_cache):
  keys = iter(['one', 'two'])
  with pytest.raises(DataError, match='changed while they were read'):
    cache.through('set', lambda: next(keys), Decoder())
  assert not own_cache.exists()
