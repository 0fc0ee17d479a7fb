"""Image files in one folder a class, and the layout of Tiny-ImageNet."""

import concurrent.futures
import functools
import itertools
import pathlib

import numpy as np

from rkd_jax import untrusted
from rkd_jax.data import cache, images
from rkd_jax.data.checks import allocate, check_names, make_split, make_stored
from rkd_jax.data.dataset import Stored
from rkd_jax.errors import ConfigError, DataError

_SUFFIXES = frozenset(
    ('.png', '.jpg', '.jpeg', '.bmp', '.webp', '.pgm', '.ppm'))
# Left out in silence, these would leave a data set with holes.
_UNREAD = frozenset(
    ('.gif', '.tif', '.tiff', '.jfif', '.jpe', '.jp2', '.heic', '.heif', '.avif',
     '.pbm', '.pnm', '.dib', '.tga', '.npy', '.npz'))
_LITTER = frozenset(('__MACOSX', '@eaDir'))  # Folders that systems leave.
_MOST_TEXT = 2**28  # Bytes of a list of annotations.
_LAYOUT = (
    'wanted data_dir/train/<class>/<image files> and data_dir/test/<class>/... '
    '(or val/<class>/..., or Tiny-ImageNet\'s val/images and '
    'val/val_annotations.txt)')
_TINY_HOW = (
    'download http://cs231n.stanford.edu/tiny-imagenet-200.zip, unpack it, and '
    'give the folder tiny-imagenet-200 as data_dir')
_CHUNK = 1024

Listing = list[tuple[pathlib.Path, str]]  # (image file, class name)


def read(data_dir: pathlib.Path | None) -> Stored:
  """Reads train/<class>/ and test/<class>/ (else val/<class>/) under a folder.

  Classes are the names of the folders under train/, sorted; files are taken in
  sorted order, so a class has one number in all splits. Images may lie in a subfolder
  `images` of a class folder. All images have one size. They have one channel when every
  image is grey, else three. Links are followed; hidden files and files without the
  suffix of an image are left out. See `images.decode` for what an image may be.

  Raises:
    ConfigError: no data_dir.
    DataError: folders are missing or empty, the classes of train and test
      differ, sizes differ, an image is no regular file, or it cannot be read.
  """
  if data_dir is None:
    raise ConfigError(f"the data set 'folder' needs data_dir; {_LAYOUT}")
  return _read('folder', data_dir)


def read_tiny_imagenet(data_dir: pathlib.Path | None) -> Stored:
  """Reads Tiny-ImageNet (Le and Yang 2015); its validation images are the test.

  Args:
    data_dir: the unpacked folder, or the one that holds tiny-imagenet-200.

  Raises:
    ConfigError, DataError: as `read`, and when there are not 200 classes.
  """
  if data_dir is None:
    raise ConfigError(f"the data set 'tiny_imagenet' needs data_dir: {_TINY_HOW}")
  inner = data_dir / 'tiny-imagenet-200'
  root = inner if inner.is_dir() else data_dir
  if not (root / 'val' / 'val_annotations.txt').is_file():
    raise DataError(
        f'looked for Tiny-ImageNet in {root}: there is no '
        f'val/val_annotations.txt; {_TINY_HOW}')
  stored = _read('tiny_imagenet', root)
  if len(stored.class_names) != 200:
    raise DataError(
        f'{root / "train"} has {len(stored.class_names)} classes, '
        f'Tiny-ImageNet has 200; is it complete? Otherwise {_TINY_HOW}')
  return stored


def _read(name: str, root: pathlib.Path) -> Stored:
  train, test, class_names = _listings(root)
  files = [file for file, _ in itertools.chain(train, test)]
  labels = repr([label for _, label in test])
  return cache.through(
      f'{name}-1', functools.partial(cache.fingerprint, root, files, labels),
      functools.partial(_decode, root, train, test, class_names))


def _listings(root: pathlib.Path) -> tuple[Listing, Listing, list[str]]:
  """(training images, test images, class names)."""
  if not (root / 'train').is_dir():
    raise DataError(f'there is no folder {root / "train"}; {_LAYOUT}')
  train = _by_class(root / 'train')
  class_names = sorted({label for _, label in train})
  if len(class_names) < 2:
    raise DataError(
        f'{root / "train"} has one class folder, {class_names[0]!r}; two or more '
        f'are wanted; {_LAYOUT}')
  check_names(class_names, f'{root / "train"}')
  test, where = _test_listing(root)
  _check_same_classes(class_names, {label for _, label in test}, where)
  return train, test, class_names


def _by_class(root: pathlib.Path) -> Listing:
  listing = []
  for folder in _subfolders(root):
    files = _images(folder) or _images(folder / 'images')
    if not files:
      raise DataError(
          f'the class folder {folder} holds no image '
          f'({", ".join(sorted(_SUFFIXES))})')
    listing += [(file, folder.name) for file in files]
  if not listing:
    raise DataError(f'{root} holds no class folder; {_LAYOUT}')
  return listing


def _test_listing(root: pathlib.Path) -> tuple[Listing, pathlib.Path]:
  # First, because Tiny-ImageNet's own test/ folder has images without labels.
  annotations = root / 'val' / 'val_annotations.txt'
  if annotations.is_file():
    return _annotated(annotations), annotations
  for name in ('test', 'val'):
    if (root / name).is_dir():
      return _by_class(root / name), root / name
  raise DataError(f'there is no folder {root / "test"} or {root / "val"}; {_LAYOUT}')


def _annotated(annotations: pathlib.Path) -> Listing:
  folder = annotations.parent / 'images'
  there = {file.name: file for file in _images(folder)}
  content = untrusted.read_bytes(annotations, DataError, _MOST_TEXT)
  labels = {}
  for number, line in enumerate(content.decode(errors='replace').splitlines(), 1):
    fields = line.split('\t')
    if len(fields) < 2:
      raise DataError(
          f'{annotations}, line {number}: wanted file name, tab, class; got '
          f'{line[:200]!r}')
    if fields[0] in labels:
      raise DataError(f'{annotations}, line {number}: {fields[0]!r} has a class already')
    labels[fields[0]] = fields[1]
  if not labels or set(labels) != set(there):
    missing, extra = set(labels) - set(there), set(there) - set(labels)
    raise DataError(
        f'{annotations} names {len(labels)} images, {folder} holds {len(there)}; '
        f'{len(missing)} are missing there, {len(extra)} have no '
        f'class (for example {", ".join(sorted(missing | extra)[:3]) or "none at all"})')
  return sorted((there[name], label) for name, label in labels.items())


def _check_same_classes(train: list[str], test: set[str],
                        where: pathlib.Path) -> None:
  only_train, only_test = sorted(set(train) - test), sorted(test - set(train))
  if only_train or only_test:
    raise DataError(
        f'the classes of train and of {where} differ: only in train: '
        f'{only_train[:5]} ({len(only_train)}), only in test: {only_test[:5]} '
        f'({len(only_test)})')


def _decode(root: pathlib.Path, train: Listing, test: Listing,
            class_names: list[str]) -> Stored:
  number = {name: i for i, name in enumerate(class_names)}
  files = [file for file, _ in itertools.chain(train, test)]
  labels = np.array([number[label] for _, label in itertools.chain(train, test)])
  pixels = _read_images(files, root)
  parts = [
      make_split(pixels[where], labels[where], num_classes=len(class_names),
                 where=str(root))
      for where in (slice(len(train)), slice(len(train), None))]
  return make_stored(*parts, class_names, str(root))


def _read_images(files: list[pathlib.Path], root: pathlib.Path) -> np.ndarray:
  """uint8[N, H, W, 1 or 3]; grey only when every image is."""
  any_colour = False
  with images.limited(), concurrent.futures.ThreadPoolExecutor() as pool:
    first, _ = _read_image(files[0])
    pixels = allocate((len(files), *first.shape), str(root))
    for start in range(0, len(files), _CHUNK):
      chunk = files[start:start + _CHUNK]
      for i, (image, colour) in enumerate(pool.map(_read_image, chunk), start):
        if image.shape != first.shape:
          raise DataError(
              f'{files[i]} is {_size(image)}, but {files[0]} is {_size(first)} '
              '(height x width); all images must have one size: resize them first')
        pixels[i] = image
        any_colour |= colour
  return pixels if any_colour else pixels[..., :1]


def _read_image(file: pathlib.Path) -> tuple[np.ndarray, bool]:
  content = untrusted.read_bytes(file, DataError, images.MOST_BYTES)
  return images.decode(content, str(file))


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
  """Image files in a folder, sorted; each is a file and can be opened."""
  if not folder.is_dir():
    return []
  found = []
  for file in _entries(folder):
    suffix = file.suffix.lower()
    if suffix in _UNREAD:
      raise DataError(f'{file}: images of the kind {suffix} are not read; convert them '
                      f'to one of {", ".join(sorted(_SUFFIXES))}, or take them away')
    if suffix in _SUFFIXES:
      untrusted.check_file(file, DataError, images.MOST_BYTES)
      found.append(file)
  return found


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
  found = []
  for path in _entries(folder):
    if path.is_dir():
      found.append(path)
    elif path.is_symlink() and not path.is_file():  # Else a class would be left out.
      untrusted.check_file(path, DataError)
  return found


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
  """What a folder holds and a person put there, sorted."""
  try:
    return sorted(path for path in folder.iterdir()
                  if not path.name.startswith('.') and path.name not in _LITTER)
  except OSError as error:
    raise DataError(
        f'the folder {folder} cannot be listed: {error.strerror or error}') from error


def _size(image: np.ndarray) -> str:
  return f'{image.shape[0]}x{image.shape[1]}'
