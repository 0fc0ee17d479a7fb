"""Data sets that TensorFlow Datasets prepared as ArrayRecord, read without TF."""

import functools
import json
import os
import pathlib
import re

import numpy as np

from rkd_jax.data import cache, download
from rkd_jax.data.dataset import Split, Stored, make_split, make_stored
from rkd_jax.errors import DataError

_VERSION = re.compile(r'\d+\.\d+\.\d+')
_BATCH = 1000
_FORMAT = 'array_record'


def read(name: str, data_dir: pathlib.Path | None) -> Stored:
  """Reads `<data_dir>/<name>/<version>/`, the highest version there.

  Decodes once; later calls read the cache and do not import TFDS. A data set
  that is not prepared is downloaded and prepared where that is possible.

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
  return pathlib.Path(chosen).expanduser()


def _newest(folder: pathlib.Path) -> str | None:
  if not folder.is_dir():
    return None
  versions = [path.name for path in folder.iterdir()
              if path.is_dir() and _VERSION.fullmatch(path.name)]
  return max(versions, key=lambda v: [int(n) for n in v.split('.')], default=None)


def _checked_files(name: str, folder: pathlib.Path) -> list[pathlib.Path]:
  """All files of the data set; DataError names what is wrong with them."""
  how = download.how(name, folder.parent.parent)
  try:
    info = json.loads((folder / 'dataset_info.json').read_text())
    splits = {split['name']: len(split['shardLengths']) for split in info['splits']}
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise DataError(
        f'{folder / "dataset_info.json"} cannot be read ({error}); delete '
        f'{folder}. {how}') from error
  if info.get('fileFormat') != _FORMAT:
    raise DataError(
        f'{folder} was prepared with file format {info.get("fileFormat")!r}; '
        f'reading without TensorFlow needs {_FORMAT!r}: delete it. {how}')
  if not {'train', 'test'} <= set(splits):
    raise DataError(
        f'{folder} has splits {sorted(splits)}; wanted train and test. {how}')
  wanted = ['features.json'] + [
      f'{name}-{split}.{_FORMAT}-{shard:05d}-of-{splits[split]:05d}'
      for split in ('train', 'test') for shard in range(splits[split])]
  missing = [file for file in wanted if not (folder / file).is_file()]
  if missing:
    raise DataError(
        f'{folder} lacks {len(missing)} of its {len(wanted)} files, first '
        f'{missing[0]}; copy them again, or delete the folder. {how}')
  return [folder / file for file in ('dataset_info.json', *wanted)] + list(
      folder.glob('*.labels.txt'))


def _decode(name: str, folder: pathlib.Path) -> Stored:
  import tensorflow_datasets as tfds  # Most of a second, and only needed here.
  try:
    builder = tfds.builder_from_directory(os.fspath(folder))
    class_names = builder.info.features['label'].names
    parts = [
        _decode_split(builder, split, len(class_names), folder)
        for split in ('train', 'test')]
  except DataError:
    raise
  except Exception as error:  # array_record and the decoders raise many types.
    raise DataError(
        f'{folder} cannot be decoded, a file is damaged ({type(error).__name__}: '
        f'{error}); copy it again, or delete the folder. '
        f'{download.how(name, folder.parent.parent)}') from error
  return make_stored(*parts, class_names, str(folder))


def _decode_split(builder, split: str, num_classes: int,
                  folder: pathlib.Path) -> Split:
  source = builder.as_data_source(split)
  count = len(source)
  image = np.empty((count, *builder.info.features['image'].shape), np.uint8)
  label = np.empty(count, np.int64)
  for start in range(0, count, _BATCH):
    index = range(start, min(start + _BATCH, count))
    for i, example in zip(index, source.__getitems__(list(index)), strict=True):
      image[i], label[i] = example['image'], example['label']
  return make_split(image, label, num_classes=num_classes,
                    where=f'{folder} split {split}')
