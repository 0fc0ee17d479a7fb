"""Tiny-ImageNet's layout, from files written here."""

import shutil

import numpy as np
import pytest
from PIL import Image

from rkd_jax import data
from rkd_jax.errors import DataError


def write(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


@pytest.fixture
def tiny(tmp_path):
  """Tiny-ImageNet's layout with 200 classes of one image, and 200 val images."""
  root = tmp_path / 'tiny-imagenet-200'
  lines = []
  for number in range(200):
    name = f'n{number:08d}'
    write(root / 'train' / name / 'images' / f'{name}_0.PNG',
          np.full((4, 4, 3), number, np.uint8))
    (root / 'train' / name / f'{name}_boxes.txt').write_text('0\t0\t3\t3')
    file = f'val_{(7 * number) % 200}.PNG'
    write(root / 'val' / 'images' / file, np.full((4, 4, 3), number, np.uint8))
    lines.append(f'{file}\t{name}\t0\t0\t3\t3')
  (root / 'val' / 'val_annotations.txt').write_text('\n'.join(lines) + '\n')
  # Without a label.
  write(root / 'test' / 'images' / 'test_0.PNG', np.zeros((4, 4, 3), np.uint8))
  return root


@pytest.mark.parametrize('name', ['tiny_imagenet', 'folder'])
def test_tiny_imagenet(tiny, name):
  loaded = data.load(name, data_dir=tiny, validation=0)
  assert loaded.num_classes == 200 and loaded.image_shape == (4, 4, 3)
  for split in (loaded.train, loaded.test):
    assert len(split) == 200
    np.testing.assert_array_equal(split.image[:, 0, 0, 0], split.label)


def test_tiny_imagenet_below_data_dir(tiny):
  assert len(data.load('tiny_imagenet', data_dir=tiny.parent).test) == 200


def test_tiny_imagenet_errors(tiny, tmp_path):
  with pytest.raises(DataError, match='val_annotations.txt; download http'):
    data.load('tiny_imagenet', data_dir=tmp_path / 'nowhere')
  (tiny / 'val' / 'images' / 'val_3.PNG').unlink()
  with pytest.raises(DataError, match='1 are missing there.*val_3.PNG'):
    data.load('tiny_imagenet', data_dir=tiny)
  annotations = tiny / 'val' / 'val_annotations.txt'
  lines = [line for line in annotations.read_text().splitlines()
           if not line.startswith('val_3.')]
  annotations.write_text('\n'.join(lines))
  with pytest.raises(DataError, match='differ: only in train'):
    data.load('tiny_imagenet', data_dir=tiny)
  annotations.write_text('val_1.PNG n00000001')
  with pytest.raises(DataError, match='line 1: wanted file name, tab, class'):
    data.load('tiny_imagenet', data_dir=tiny)


def test_tiny_imagenet_must_have_200_classes(tiny):
  annotations = tiny / 'val' / 'val_annotations.txt'
  lines = annotations.read_text().splitlines()
  shutil.rmtree(tiny / 'train' / 'n00000199')
  (tiny / 'val' / 'images' / lines[199].split('\t')[0]).unlink()
  annotations.write_text('\n'.join(lines[:199]))
  with pytest.raises(DataError, match='has 199 classes'):
    data.load('tiny_imagenet', data_dir=tiny)
