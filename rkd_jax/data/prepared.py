"""Data sets that TensorFlow Datasets prepared as ArrayRecord, read without TF."""

import contextlib
import functools
import os
import pathlib
import re
from collections.abc import Iterator

import numpy as np

from rkd_jax import files, untrusted
from rkd_jax.data import cache, download, images, tfds_files
from rkd_jax.data.checks import allocate, make_split, make_stored
from rkd_jax.data.dataset import Stored
from rkd_jax.errors import DataError

_VERSION = re.compile(r'\d+\.\d+\.\d+')
_BATCH = 1000


def read(name: str, data_dir: pathlib.Path | None) -> Stored:
  """Reads `<data_dir>/<name>/<version>/`, the highest version there.

  Decodes once; later calls read the cache and do not import TFDS. A data set
  that is not prepared is downloaded and prepared where that is possible. TFDS itself
  does not open the folder, because it imports the modules that features.json names.

  Args:
    name: TFDS name, with features `image` and `label`, splits train and test.
    data_dir: the directory that TFDS calls data_dir; None takes its default.

  Raises:
    DataError: not there and not to be had, files are missing, or a record is
      damaged.
  """
  if data_dir is not None and not data_dir.is_dir():
    raise DataError(
        f'looked for the data set {name!r} in data_dir {data_dir}, which is not '
        f'a folder. {download.how(name, data_dir)}')
  root = data_dir if data_dir is not None else default_dir()
  version = _newest(root / name)
  if version is None:
    download.prepare(name, root)
    version = _newest(root / name)
  folder = root / name / version
  files = _checked_files(name, folder)
  return cache.through(
      f'{name}-{version}', functools.partial(cache.fingerprint, folder, files),
      functools.partial(_decode, name, folder))


def default_dir() -> pathlib.Path:
  """TFDS' own default: TFDS_DATA_DIR, else ~/tensorflow_datasets."""
  chosen = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return files.local_path(chosen, 'data_dir')


def _newest(folder: pathlib.Path) -> str | None:
  if not folder.is_dir():
    return None
  versions = [path.name for path in folder.iterdir()
              if path.is_dir() and _VERSION.fullmatch(path.name)]
  return max(versions, key=lambda v: [int(n) for n in v.split('.')], default=None)


def _checked_files(name: str, folder: pathlib.Path) -> list[pathlib.Path]:
  """All files of the data set; DataError names what is wrong with them."""
  how = download.how(name, folder.parent.parent)
  shards = tfds_files.shards(name, folder, how)
  missing = [file.name for file in [folder / tfds_files.FEATURES, *shards]
             if not os.path.lexists(file)]
  if missing:
    raise DataError(
        f'{folder} lacks {len(missing)} of its {len(shards) + 1} files, first '
        f'{missing[0]}; copy them again, or delete the folder. {how}')
  found = [folder / tfds_files.INFO, folder / tfds_files.FEATURES, *shards,
           *folder.glob('*.labels.txt')]
  for file in found:
    untrusted.check_file(file, DataError)
  return found


def _decode(name: str, folder: pathlib.Path) -> Stored:
  how = download.how(name, folder.parent.parent)
  shape, class_names = tfds_files.features(folder, how)
  parts = []
  with images.limited():
    for split, lengths in tfds_files.splits(folder, how).items():
      shards = tfds_files.shards(name, folder, how, [split])
      image, label = _records(dict(zip(shards, lengths, strict=True)), shape, how)
      parts.append(make_split(image, label, num_classes=len(class_names),
                              where=f'{folder} split {split}'))
  return make_stored(*parts, class_names, str(folder))


def _records(shards: dict[pathlib.Path, int], shape: tuple[int, int, int],
             how: str) -> tuple[np.ndarray, np.ndarray]:
  """(images uint8[N, H, W, C], labels int64[N]) of shards, by their lengths."""
  # Most of a second, and only needed here. No name in a file is imported.
  from array_record.python.array_record_module import ArrayRecordReader
  for file, length in shards.items():
    with _naming(file, how), contextlib.closing(ArrayRecordReader(str(file))) as reader:
      if reader.num_records() != length:
        raise DataError(
            f'{file} holds {reader.num_records():,} examples, {tfds_files.INFO} says '
            f'{length:,}; copy both again, or delete the folder. {how}')
  count = sum(shards.values())
  image = allocate((count, *shape), str(next(iter(shards)).parent))
  label = np.empty(count, np.int64)
  done = 0
  for file, length in shards.items():
    with _naming(file, how), contextlib.closing(ArrayRecordReader(str(file))) as reader:
      for start in range(0, length, _BATCH):
        for record in reader.read(list(range(start, min(start + _BATCH, length)))):
          image[done], label[done] = _example(record, shape, f'{file}, example {done}')
          done += 1
  return image, label


@contextlib.contextmanager
def _naming(file: pathlib.Path, how: str) -> Iterator[None]:
  """Turns whatever a decoder raises into one line that names the file."""
  try:
    yield
  except DataError:
    raise
  except Exception as error:  # array_record and protobuf raise many types.
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    kind = untrusted.describe(file)
    raise DataError(
        f'{file} cannot be decoded, it is damaged ({kind and f"it is {kind}; "}{line}); '
        f'copy it again, or delete the folder. {how}') from error


def _example(record: bytes, shape: tuple[int, int, int],
             where: str) -> tuple[np.ndarray, int]:
  """(image, label) of one record, a tf.train.Example with an encoded image."""
  from tensorflow_datasets.proto import tf_example_pb2
  features = tf_example_pb2.Example.FromString(record).features.feature
  encoded = features['image'].bytes_list.value
  labels = features['label'].int64_list.value
  if len(encoded) != 1 or len(labels) != 1:
    raise DataError(f'{where} has {len(encoded)} images and {len(labels)} labels')
  pixels, colour = images.decode(encoded[0], where)
  seen = (*pixels.shape[:2], 3 if colour else 1)
  if seen[:2] != shape[:2] or seen[2] > shape[2]:
    raise DataError(f'{where} is of shape {seen}, {tfds_files.FEATURES} says {shape}')
  return pixels[..., :shape[2]], labels[0]
