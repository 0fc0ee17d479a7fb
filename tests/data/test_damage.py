"""Random flips and cuts of every kind of data file: the right pixels, or its name.

The formats here carry checksums: zip and PNG a CRC-32 of their parts, array_record a hash
of every chunk, an entry of the cache a SHA-256. So no other pixels are ever read.
"""

import os
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from rkd_jax.data import cache, folder, npz, prepared
from rkd_jax.errors import DataError, RkdError


def damages(content, random, count):
  """(what was done, damaged content): flipped bits, cut ends, holes, doubled parts."""
  used = np.flatnonzero(np.frombuffer(content, np.uint8))  # Records are padded with 0.
  for _ in range(count):
    kind, at = random.integers(10), int(random.choice(used))
    if kind < 6:
      bit = 1 << int(random.integers(8))
      yield f'bit at {at}', content[:at] + bytes([content[at] ^ bit]) + content[at + 1:]
    elif kind < 8:
      yield f'cut at {at}', content[:at]
    elif kind < 9:
      yield f'hole at {at}', content[:at] + bytes(40) + content[at + 40:]
    else:
      yield f'twice at {at}', content[:at] + content[max(at - 9, 0):]


def arrays_of(stored):
  return [np.array(part) for split in (stored.train, stored.test)
          for part in (split.image, split.label)] + [stored.class_names]


def same(found, wanted):
  return all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def survey(file, read, name, count, seed=0):
  """(times named, times read right); fails on other pixels and on other errors."""
  wanted, content = arrays_of(read()), file.read_bytes()
  named = right = 0
  for what, damaged in damages(content, np.random.default_rng(seed), count):
    file.write_bytes(damaged)
    try:
      found = arrays_of(read())
    except RkdError as error:
      text = str(error)
      assert name in text and '\n' not in text and len(text) < 1500, (what, text)
      named += 1
    else:
      assert same(found, wanted), f'{file.name}: {what} gave other pixels'
      right += 1
  file.write_bytes(content)
  assert same(arrays_of(read()), wanted)
  return named, right


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_npz(tmp_path, arrays, save):
  file = tmp_path / 'set.npz'
  save(file, class_names=np.array(['cat', 'dog', 'cow']), **arrays)
  named, right = survey(file, lambda: npz.read(file), 'set.npz', 150)
  assert named > 120 and named + right == 150


def made(tmp_path):
  """An image folder of one PNG a class; no two pixels are alike."""
  pixels = np.random.default_rng(3).permutation(256 * 3).reshape(16, 16, 3) // 3
  for split in ('train', 'test'):
    for label in ('ape', 'bee'):
      path = tmp_path / 'set' / split / label / '0.png'
      path.parent.mkdir(parents=True)
      Image.fromarray(pixels.astype(np.uint8)).save(path)
  return tmp_path / 'set'


def test_png(tmp_path, monkeypatch):
  root = made(tmp_path)
  monkeypatch.setenv('RKD_CACHE_DIR', str(tmp_path / 'cache'))
  def read():
    shutil.rmtree(tmp_path / 'cache', ignore_errors=True)
    return folder.read(root)
  named, right = survey(root / 'train' / 'bee' / '0.png', read, 'bee/0.png', 200)
  assert named > 190 and right < 10


@pytest.mark.parametrize('form', ['BMP', 'PPM', 'JPEG', 'WEBP'])
def test_formats_without_a_checksum_are_named_or_read(tmp_path, form):
  """No traceback, whatever is in them; what pixels come out, nobody can tell."""
  from rkd_jax.data import images
  file = tmp_path / 'x.png'
  pixels = np.random.default_rng(1).integers(0, 256, (12, 10, 3), np.uint8)
  Image.fromarray(pixels).save(file, form)
  outcomes = []
  for what, damaged in damages(file.read_bytes(), np.random.default_rng(2), 120):
    try:
      with images.limited():
        found, _ = images.decode(damaged, 'x.png')
      assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3, what
      outcomes.append('read')
    except DataError as error:
      assert 'x.png' in str(error) and '\n' not in str(error), what
      outcomes.append('named')
  assert outcomes.count('named') >= 20


def test_array_record(prepared_dir, tmp_path, monkeypatch):
  monkeypatch.setenv('RKD_CACHE_DIR', str(tmp_path / 'cache'))
  home = prepared_dir / 'cifar10' / '3.0.2'
  def read():
    shutil.rmtree(tmp_path / 'cache', ignore_errors=True)
    return prepared.read('cifar10', prepared_dir)
  shard = home / 'cifar10-train.array_record-00001-of-00002'
  named, right = survey(shard, read, shard.name, 120)
  assert named > 60 and named + right == 120


@pytest.mark.parametrize('name', ['features.json', 'dataset_info.json'])
def test_json_of_tfds(prepared_dir, tmp_path, monkeypatch, name):
  """No checksum here, but nothing in them is a pixel: sizes, and they must fit."""
  monkeypatch.setenv('RKD_CACHE_DIR', str(tmp_path / 'cache'))
  home = prepared_dir / 'cifar10' / '3.0.2'
  def read():
    shutil.rmtree(tmp_path / 'cache', ignore_errors=True)
    return prepared.read('cifar10', prepared_dir)
  named, right = survey(home / name, read, str(home), 150)
  assert named > 75 and named + right == 150


@pytest.mark.parametrize('name', [
    'train_image.npy', 'test_label.npy', 'meta.json'])
def test_cache(tmp_path, monkeypatch, name):
  """A damaged entry is made again, whatever was done to it."""
  root = made(tmp_path)
  monkeypatch.setenv('RKD_CACHE_DIR', str(tmp_path / 'cache'))
  wanted = arrays_of(folder.read(root))
  entry, = (tmp_path / 'cache').iterdir()
  content, again = (entry / name).read_bytes(), 0
  decode = folder._decode
  def counted(*args):
    nonlocal again
    again += 1
    return decode(*args)
  monkeypatch.setattr(folder, '_decode', counted)
  for what, damaged in damages(content, np.random.default_rng(4), 40):
    before = again
    (entry / name).write_bytes(damaged)
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      assert same(arrays_of(folder.read(root)), wanted), what
    assert again == before + bool(caught), what
    assert all('decoding again' in str(each.message) for each in caught)
    assert (entry / name).read_bytes() == content or not caught
  assert again > 30


@pytest.mark.parametrize('name', ['train_image.npy', 'meta.json'])
@pytest.mark.parametrize('make', [
    os.mkfifo, lambda path: path.mkdir(), lambda path: path.symlink_to(path),
    lambda path: path.symlink_to('/dev/zero'), lambda path: None])
def test_what_is_no_file_in_the_cache(tmp_path, monkeypatch, name, make):
  root = made(tmp_path)
  monkeypatch.setenv('RKD_CACHE_DIR', str(tmp_path / 'cache'))
  wanted = arrays_of(folder.read(root))
  entry, = (tmp_path / 'cache').iterdir()
  (entry / name).unlink()
  make(entry / name)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    assert same(arrays_of(folder.read(root)), wanted)
  assert cache.directory() == tmp_path / 'cache'
  assert (entry / name).is_file()
