"""Dataset.fingerprint: equal for equal content, another for any other content."""

import dataclasses
import hashlib
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from rkd_jax import data
from rkd_jax.data import Dataset, Split


def made(train=5, test=3, **changes):
  random = np.random.default_rng(0)
  part = lambda n: Split(random.integers(0, 256, (n, 4, 3, 1), np.uint8),
                         random.integers(0, 2, n).astype(np.int32))
  parts = {'train': part(train), 'validation': part(2), 'test': part(test)}
  fields = {'name': 'set', 'num_classes': 2, 'class_names': ('a', 'b'),
            'image_shape': (4, 3, 1)}
  return Dataset(**(fields | parts | changes))


def test_definition():
  """The bytes that the docstring names, hashed by hand."""
  of = made()
  content = b"('a', 'b')"
  for split, count in ((of.train, 5), (of.validation, 2), (of.test, 3)):
    content += f'({count}, 4, 3, 1)'.encode() + split.image.tobytes()
    content += b''.join(int(label).to_bytes(4, 'little') for label in split.label)
  assert of.fingerprint == hashlib.sha256(content).hexdigest()
  assert of.fingerprint == made(name='another name').fingerprint


def pixel(split, at=(0, 0, 0, 0)):
  image = split.image.copy()
  image[at] ^= 1
  return Split(image, split.label)


def swapped(split):
  return Split(split.image[::-1], split.label[::-1])


def test_any_change_shows():
  of = made()
  label = Split(of.test.image, 1 - of.test.label)
  others = [
      made(class_names=('a', 'c')), made(class_names=("a', 'b",)),
      made(train=6), made(test=4), made(train=3, test=5)]
  others += [dataclasses.replace(of, **change) for change in (
      {'train': pixel(of.train)}, {'validation': pixel(of.validation, -1)},
      {'test': pixel(of.test)}, {'test': label}, {'train': swapped(of.train)},
      {'train': of.test, 'test': of.train},
      {'train': Split(of.train.image.reshape(5, 3, 4, 1), of.train.label)})]
  assert len({each.fingerprint for each in [of, *others]}) == 1 + len(others)


def test_images_on_the_device_and_views_count_the_same():
  import jax
  of = made()
  wanted = of.fingerprint
  assert dataclasses.replace(of, test=jax.device_put(of.test)).fingerprint == wanted
  assert dataclasses.replace(
      of, train=swapped(swapped(of.train))).fingerprint == wanted


@pytest.mark.parametrize('count', [None, 4])
def test_it_follows_content_not_the_file(tmp_path, count):
  """The same pixels in another place are the same data; other pixels never are."""
  random = np.random.default_rng(2)
  for name in ('first', 'second'):
    for part in ('train', 'test'):
      for label in ('ape', 'bee'):
        folder = tmp_path / name / part / label
        folder.mkdir(parents=True)
        for i in range(4):
          file = folder / f'{i}.ppm'  # Without compression: all of one size.
          Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8)).save(file)
          os.utime(file, (0, 0))
  shutil.copytree(tmp_path / 'first', tmp_path / 'copy')
  seen = {name: data.load('folder', data_dir=tmp_path / name, train_examples=count)
          .fingerprint for name in ('first', 'second', 'copy')}
  assert seen['first'] == seen['copy'] != seen['second']
