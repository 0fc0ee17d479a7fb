"""Image folders, from files written here."""

import os
import shutil
import socket

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


CLASS = 'train/bee'


def at(name):
  """Makes something at a path of the folder, which is free then."""
  def of(make):
    def damage(root):
      path = root / name
      if path.is_dir():
        shutil.rmtree(path)
      path.unlink(missing_ok=True)
      make(path)
    return damage
  return of


def socket_at(path):
  here = os.getcwd()
  os.chdir(path.parent)  # The address of a socket may have 107 bytes.
  try:
    with socket.socket(socket.AF_UNIX) as server:
      server.bind(path.name)
  finally:
    os.chdir(here)


def sparse(path):
  with path.open('wb') as file:
    file.truncate(2**40)


image, annotations = at(f'{CLASS}/1.png'), at('val/val_annotations.txt')


def annotated(lines, images=('a.png', 'b.png')):
  def damage(root):
    shutil.rmtree(root / 'test')
    for i, name in enumerate(images):
      write(root / 'val' / 'images' / name, picture(i))
    if isinstance(lines, bytes):
      (root / 'val' / 'val_annotations.txt').write_bytes(lines)
    else:
      annotations(lines)(root)
  return damage


def called(*names):
  """Renames class folders in both splits."""
  def damage(root):
    for split in ('train', 'test'):
      for old, new in zip(('ape', 'bee'), names, strict=False):
        (root / split / old).rename(root / split / new)
  return damage


GOOD = b'a.png\tape\nb.png\tbee\n'
NO_FILE = {
    'named pipe': (image(os.mkfifo), 'bee/1.png is a named pipe'),
    'socket': (image(socket_at), 'bee/1.png is a socket'),
    'device': (image(lambda path: path.symlink_to('/dev/zero')), 'bee/1.png is a device'),
    'folder': (image(lambda path: path.mkdir()), 'bee/1.png is a folder'),
    'link to nothing': (image(lambda path: path.symlink_to('gone.png')),
                        'bee/1.png is a link that leads nowhere'),
    'link to itself': (image(lambda path: path.symlink_to(path)),
                       'bee/1.png is a link that leads in a circle'),
    'two links': (lambda root: [
        (root / CLASS / a).symlink_to(b) for a, b in (('7.png', '8.png'),
                                                      ('8.png', '7.png'))],
                  '7.png is a link that leads in a circle'),
    'a terabyte': (image(sparse), '1.png has 1,099,511,627,776 bytes; no more than'),
    'no bytes': (image(lambda path: path.touch()), 'bee/1.png: it is empty'),
    'class link to nothing': (at('train/cow')(lambda path: path.symlink_to('gone')),
                              'train/cow is a link that leads nowhere'),
    'class link to itself': (at('train/cow')(lambda path: path.symlink_to(path)),
                             'train/cow is a link that leads in a circle'),
    'class that is a pipe': (at(CLASS)(os.mkfifo), 'one class folder'),
    'gif': (lambda root: write(root / CLASS / 'x.GIF', picture(0)), '.gif are not read'),
    'tiff': (lambda root: write(root / CLASS / 'x.tif', picture(0)), '.tif are not read'),
    'npy': (lambda root: np.save(root / CLASS / 'x.npy', 1), '.npy are not read'),
    'no train': (at('train')(lambda path: path.touch()), 'there is no folder'),
    'train is a pipe': (at('train')(os.mkfifo), 'there is no folder'),
    'train in a circle': (at('train')(lambda path: path.symlink_to(path)), 'no folder'),
    'test is a file': (at('test')(lambda path: path.touch()), 'there is no folder'),
    'class name in two lines': (called('ape\ncat'), "'ape\\ncat' cannot name a class"),
    'class name with an escape': (called('\x1b[31m'), 'cannot name a class'),
    'class name in Latin-1': (called(os.fsdecode(b'caf\xe9')), 'cannot name a class'),
    'class name of blanks': (called('  '), "'  ' cannot name a class"),
    'class name that turns round': (called('a\u202eb'), 'cannot name a class'),
    'annotations twice': (annotated(GOOD + b'a.png\tbee\n'),
                          "line 3: 'a.png' has a class already"),
    'annotations from outside': (annotated(b'../../train/ape/0.png\tape\n' + GOOD),
                                 '1 are missing there'),
    'annotations of another class': (annotated(b'a.png\tape\nb.png\twasp\n'), 'wasp'),
    'annotations without a tab': (annotated(b'a.png ape\n'), 'line 1: wanted file name'),
    'annotations of bytes': (annotated(bytes(range(256)) * 4), 'wanted file name'),
    'annotations empty': (annotated(b''), 'names 0 images'),
    'annotations in a circle': (annotated(lambda path: path.symlink_to(path)),
                                'leads in a circle'),
    'annotated pipe': (lambda root: [annotated(GOOD)(root),
                                     at('val/images/a.png')(os.mkfifo)(root)],
                       'images/a.png is a named pipe'),
}


@pytest.mark.parametrize('name', NO_FILE)
def test_what_is_no_image_is_named(root, own_cache, name):
  damage, words = NO_FILE[name]
  damage(root)
  with pytest.raises(DataError) as error:
    folder.read(root)
  assert words in str(error.value) and '\n' not in str(error.value)
  assert not own_cache.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
@pytest.mark.parametrize('name', [f'{CLASS}/1.png', CLASS, 'train'])
def test_what_may_not_be_read_is_named(root, name):
  path = root / name
  path.chmod(0)
  try:
    with pytest.raises(DataError, match=str(path)):
      folder.read(root)
  finally:
    path.chmod(0o700)


def test_unreadable_file_and_folder_are_named(root, monkeypatch):
  """As the skipped test above, where nothing is refused to this account."""
  def refuse(path, *args, **kwargs):
    raise PermissionError(13, 'Permission denied', str(path))
  with monkeypatch.context() as patch:
    patch.setattr('builtins.open', refuse)
    with pytest.raises(DataError, match='ape/0.png may not be read by this account'):
      folder.read(root)
  monkeypatch.setattr('pathlib.Path.iterdir', refuse)
  with pytest.raises(DataError, match='train cannot be listed: Permission denied'):
    folder.read(root)


@pytest.mark.parametrize('leave', [
    'train/.DS_Store', 'train/bee/.DS_Store', 'train/bee/._1.png', 'train/bee/Thumbs.db',
    'train/README.txt', 'train/__MACOSX/bee/1.png', 'train/@eaDir/bee.png',
    'train/.ipynb_checkpoints/1.png', 'train/bee/desktop.ini', '__MACOSX/train/x/1.png'])
def test_what_systems_leave_is_left_out(root, leave):
  (root / leave).parent.mkdir(parents=True, exist_ok=True)
  (root / leave).write_bytes(b'\0\5\x16\7')
  stored = folder.read(root)
  assert stored.class_names == ('ape', 'bee') and len(stored.train) == 6


@pytest.mark.parametrize('suffix', ['.PNG', '.Png', '.bmp', '.BMP', '.ppm', '.webp'])
def test_suffixes_in_any_case(root, suffix):
  for file in list(root.rglob('*.png')):
    options = {'lossless': True} if suffix == '.webp' else {}
    Image.open(file).save(file.with_suffix(suffix), **options)
    file.unlink()
  np.testing.assert_array_equal(folder.read(root).test.image[0], picture(100))


@pytest.mark.parametrize(('first', 'second'), [
    ('10', '9'), ('b', 'a'), ('Zebra', 'ape'), ('\u00e9cole', 'zoo'), ('a b', 'a')])
def test_a_class_has_one_number_in_all_splits(root, first, second):
  """Whatever the order in which the folders were made or are listed."""
  shutil.rmtree(root)
  names = sorted((first, second))
  for split in ('train', 'test'):
    for name in (first, second) if split == 'train' else (second, first):
      for i in range(2):
        write(root / split / name / f'{i}.png',
              np.full((4, 4, 3), 100 * (1 + names.index(name)) + i, np.uint8))
  stored = folder.read(root)
  assert list(stored.class_names) == names
  for split in (stored.train, stored.test):
    np.testing.assert_array_equal(split.image[:, 0, 0, 0] // 100 - 1, split.label)


def test_links_are_followed(root, tmp_path):
  shutil.move(root / 'train' / 'bee', tmp_path / 'elsewhere')
  (root / 'train' / 'bee').symlink_to(tmp_path / 'elsewhere')
  np.testing.assert_array_equal(folder.read(root).train.image[3], picture(10))


def test_more_pixels_than_memory(root, own_cache, monkeypatch):
  monkeypatch.setattr('os.sysconf', lambda name: 20)  # 400 bytes.
  with pytest.raises(DataError, match='6, 5, 3.* need .* this machine has'):
    folder.read(root)
