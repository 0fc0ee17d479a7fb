"""Image folders and Tiny-ImageNet's layout, from files written here."""

import shutil

import numpy as np
import pytest
from PIL import Image

from rkd_jax import data
from rkd_jax.data import folder
from rkd_jax.errors import DataError


def write(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


def picture(seed, shape=(6, 5, 3)):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def root(tmp_path):
  """Two classes, 3 training and 2 test images each; seed = 10 class + number."""
  for split, count, base in (('train', 3, 0), ('test', 2, 100)):
    for number, name in enumerate(('ape', 'bee')):
      for i in range(count):
        write(tmp_path / 'set' / split / name / f'{i}.png',
              picture(base + 10 * number + i))
  return tmp_path / 'set'


def test_round_trip(root):
  for _ in range(2):  # Decoded, then from the cache.
    stored = folder.read(root)
    assert stored.class_names == ('ape', 'bee')
    assert stored.train.label.tolist() == [0, 0, 0, 1, 1, 1]
    assert stored.test.label.tolist() == [0, 0, 1, 1]
    for split, seeds in ((stored.train, (0, 1, 2, 10, 11, 12)),
                         (stored.test, (100, 101, 110, 111))):
      np.testing.assert_array_equal(split.image, [picture(seed) for seed in seeds])
  assert data.load('folder', data_dir=root, validation=0.2).image_shape == (6, 5, 3)


def test_val_serves_as_test_and_other_files_are_left(root):
  (root / 'test').rename(root / 'val')
  (root / 'train' / 'ape' / 'notes.txt').write_text('no image')
  (root / 'train' / 'ape' / '._0.png').write_text('left by a copy')
  assert len(folder.read(root).test) == 4


def test_changed_file_is_read_again(root):
  folder.read(root)
  write(root / 'train' / 'ape' / '0.png', picture(99))
  np.testing.assert_array_equal(folder.read(root).train.image[0], picture(99))


def test_grey_only_when_all_are_grey(root):
  files = sorted(root.rglob('*.png'))
  for seed, file in enumerate(files):
    write(file, picture(seed, (6, 5)))
  grey = folder.read(root)
  assert grey.train.image.shape == (6, 6, 5, 1)
  train = [i for i, file in enumerate(files) if 'train' in file.parts]
  np.testing.assert_array_equal(
      grey.train.image[..., 0], [picture(i, (6, 5)) for i in train])
  write(root / 'test' / 'bee' / '1.png', picture(7))
  mixed = folder.read(root)
  np.testing.assert_array_equal(mixed.train.image, np.repeat(grey.train.image, 3, -1))
  np.testing.assert_array_equal(mixed.test.image[-1], picture(7))


def rename_class(root):
  (root / 'test' / 'bee').rename(root / 'test' / 'wasp')


def empty_class(root):
  (root / 'train' / 'cat').mkdir()


def other_size(root):
  write(root / 'train' / 'bee' / '1.png', picture(0, (7, 5, 3)))


def truncated(root):
  file = root / 'test' / 'bee' / '1.png'
  file.write_bytes(file.read_bytes()[:60])


def deep(root):
  write(root / 'train' / 'bee' / '1.png', np.zeros((6, 5), np.uint16))


@pytest.mark.parametrize(('damage', 'words'), [
    (lambda root: shutil.rmtree(root), ['no folder', 'train', 'wanted data_dir/']),
    (lambda root: shutil.rmtree(root / 'test'), ['no folder', 'test', 'val']),
    (lambda root: [shutil.rmtree(root / 'train' / c) for c in ('ape', 'bee')],
     ['train holds no class folder']),
    (lambda root: shutil.rmtree(root / 'train' / 'ape'), ['one class folder', 'bee']),
    (rename_class, ["only in train: ['bee']", "only in test: ['wasp']"]),
    (empty_class, ['train/cat holds no image', '.png']),
    (other_size, ['bee/1.png is 7x5', 'is 6x5', 'resize']),
    (truncated, ['cannot read the image', 'test/bee/1.png']),
    (lambda root: (root / 'train/ape/0.png').write_text('x'),
     ['cannot read the image', 'train/ape/0.png']),
    (deep, ['bee/1.png has more than 8 bits']),
])
def test_damage_is_named_and_nothing_cached(root, own_cache, damage, words):
  damage(root)
  with pytest.raises(DataError) as error:
    data.load('folder', data_dir=root)
  for word in words:
    assert word in str(error.value)
  assert not own_cache.exists()


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
  write(root / 'test' / 'images' / 'test_0.PNG', picture(0, (4, 4, 3)))  # No label.
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
