"""The cache returns what was decoded, or decodes again."""

import json
import os
import warnings

import numpy as np
import pytest

from rkd_jax.data import cache
from rkd_jax.data.dataset import Split, Stored


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
    assert_same(cache.through('set-1-abc', decoder), decoder.stored)
  assert decoder.calls == 1
  assert os.listdir(own_cache) == ['set-1-abc']  # No temporary folder is left.
  cache.through('set-1-abd', decoder)
  assert decoder.calls == 2


def flip_one_pixel(entry):
  file = entry / 'train_image.npy'
  content = bytearray(file.read_bytes())
  content[-7] ^= 1
  file.write_bytes(content)


def other_dtype(entry):
  np.save(entry / 'train_image.npy', np.zeros((11, 4, 4, 1), np.float32))


def drop_a_class_name(entry):
  meta = json.loads((entry / 'meta.json').read_text())
  (entry / 'meta.json').write_text(json.dumps(meta | {'class_names': ['a']}))


@pytest.mark.parametrize('damage', [
    flip_one_pixel, other_dtype, drop_a_class_name,
    lambda entry: (entry / 'test_label.npy').unlink(),
    lambda entry: (entry / 'train_image.npy').write_bytes(b'\x93NUMPY'),
    lambda entry: (entry / 'meta.json').write_text('{"class_names": ["a"'),
    lambda entry: (entry / 'meta.json').write_text('[]'),
])
def test_damaged_entry_is_rebuilt(own_cache, damage):
  decoder = Decoder()
  cache.through('set', decoder)
  damage(own_cache / 'set')
  with pytest.warns(UserWarning, match='damaged'):
    assert_same(cache.through('set', decoder), decoder.stored)
  assert decoder.calls == 2
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert_same(cache.through('set', decoder), decoder.stored)
  assert decoder.calls == 2
  assert os.listdir(own_cache) == ['set']


def test_entry_without_meta_is_replaced(own_cache):
  decoder = Decoder()
  (own_cache / 'set').mkdir(parents=True)
  (own_cache / 'set' / 'train_image.npy').write_bytes(b'half')
  for _ in range(2):
    assert_same(cache.through('set', decoder), decoder.stored)
  assert decoder.calls == 1


def test_unwritable_cache_warns_once_and_works(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('RKD_CACHE_DIR', str(tmp_path / 'file' / 'cache'))
  decoder = Decoder()
  with pytest.warns(UserWarning, match='Set RKD_CACHE_DIR') as caught:
    assert_same(cache.through('set', decoder), decoder.stored)
  assert len(caught) == 1


def test_failed_decoding_writes_nothing(own_cache):
  def fail():
    raise KeyError('decoder')
  with pytest.raises(KeyError, match='decoder'):
    cache.through('set', fail)
  assert not own_cache.exists()


def test_another_process_that_was_first_wins(own_cache):
  decoder = Decoder()
  def slow():
    cache.through('set', decoder)  # As another process would, in the meantime.
    return decoder.stored
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert_same(cache.through('set', slow), decoder.stored)
  assert os.listdir(own_cache) == ['set']


def test_fingerprint_follows_names_sizes_and_times(tmp_path):
  file = tmp_path / 'a.bin'
  file.write_bytes(b'1234')
  os.utime(file, ns=(0, 0))
  seen = {cache.fingerprint(tmp_path, [file])}
  assert seen == {cache.fingerprint(tmp_path, [file])}
  seen.add(cache.fingerprint(tmp_path, [file], text='more'))
  os.utime(file, ns=(0, 1))
  seen.add(cache.fingerprint(tmp_path, [file]))
  file.write_bytes(b'12345')
  os.utime(file, ns=(0, 0))
  seen.add(cache.fingerprint(tmp_path, [file]))
  file.write_bytes(b'1234')
  renamed = file.rename(tmp_path / 'b.bin')
  os.utime(renamed, ns=(0, 0))
  seen.add(cache.fingerprint(tmp_path, [renamed]))
  assert len(seen) == 5
