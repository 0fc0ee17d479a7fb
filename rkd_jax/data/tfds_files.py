"""The two JSON files of a folder that TensorFlow Datasets prepared.

TFDS imports every module that `features.json` names, so a folder from elsewhere could
run any installed module. Here they are read as plain data, and a folder that names
anything outside TFDS is refused.
"""

import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from rkd_jax import untrusted
from rkd_jax.errors import DataError

INFO, FEATURES = 'dataset_info.json', 'features.json'
FORMAT = 'array_record'
SPLITS = ('train', 'test')
_MOST_TEXT = 2**24  # Bytes of a file of text.
_MOST_SHARDS = 10**5  # Their numbers have five digits.
_CLASS_KEYS = ('pythonClassName', 'python_class_name', 'type')
_TFDS = re.compile(r'tensorflow_datasets(\.\w+)+', re.ASCII)
_CORE = 'tensorflow_datasets.core.features.'
_IMAGE = f'{_CORE}image_feature.Image'
_LABEL = f'{_CORE}class_label_feature.ClassLabel'


def splits(folder: pathlib.Path, how: str) -> dict[str, list[int]]:
  """Examples in each shard of the splits train and test.

  Args:
    folder: `<data_dir>/<name>/<version>`.
    how: How to get the data set, for the errors.

  Raises:
    DataError: The file is absent, damaged, of another format, or lacks a split.
  """
  info = _json(folder / INFO, how)
  try:
    lengths = {split['name']: [int(count) for count in split['shardLengths']]
               for split in info['splits']}
    if min((count for counts in lengths.values() for count in counts), default=0) < 0:
      raise ValueError('a shard of negative length')
    if max(map(len, lengths.values()), default=0) > _MOST_SHARDS:
      raise ValueError(f'more than {_MOST_SHARDS} shards')
  except (ValueError, KeyError, TypeError) as error:
    raise _unread(folder / INFO, repr(error), how) from error
  if info.get('fileFormat') != FORMAT:
    raise DataError(
        f'{folder} was prepared with file format {info.get("fileFormat")!r}; '
        f'reading without TensorFlow needs {FORMAT!r}: delete it. {how}')
  if not set(SPLITS) <= set(lengths) or not all(lengths[split] for split in SPLITS):
    raise DataError(
        f'{folder} has splits {sorted(lengths)}; wanted train and test. {how}')
  return {split: lengths[split] for split in SPLITS}


def shards(name: str, folder: pathlib.Path, how: str,
           of: Sequence[str] = SPLITS) -> list[pathlib.Path]:
  """The record files that the splits should have; errors as `splits`."""
  lengths = splits(folder, how)
  return [
      folder / f'{name}-{split}.{FORMAT}-{shard:05d}-of-{len(lengths[split]):05d}'
      for split in of for shard in range(len(lengths[split]))]


def features(folder: pathlib.Path,
             how: str) -> tuple[tuple[int, int, int], tuple[str, ...]]:
  """((H, W, C), class names) from features.json and label.labels.txt.

  Raises:
    DataError: A file is damaged, a class outside TFDS is named, or `image` and `label`
      are no uint8 image and class label.
  """
  file = folder / FEATURES
  content = _json(file, how)
  for name in _named_classes(content):
    if not isinstance(name, str) or not _TFDS.fullmatch(name):
      raise DataError(
          f'{file} names the Python class {name!r:.200}, which is not part of TensorFlow '
          'Datasets: TFDS would import and run it, so the folder is not read. Did you '
          f'make it yourself? Store it as a .npz file instead. {how}')
  try:
    parts = content['featuresDict']['features']
    image, label = parts['image'], parts['label']
    kinds = image['pythonClassName'], label['pythonClassName']
    if kinds != (_IMAGE, _LABEL):
      raise ValueError(f'image and label are {kinds}, wanted {(_IMAGE, _LABEL)}')
    if image['image'].get('dtype', 'uint8') != 'uint8':
      raise ValueError(f'images are {image["image"]["dtype"]}, wanted uint8')
    shape = tuple(int(n) for n in image['image']['shape']['dimensions'])
    if len(shape) != 3 or min(shape) < 1 or shape[2] not in (1, 3):
      raise ValueError(f'images are of shape {shape}, wanted (H, W, 1 or 3)')
    classes = int(label['classLabel']['numClasses'])
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise _unread(file, str(error) if isinstance(error, ValueError) else repr(error),
                  how) from error
  return shape, _class_names(folder / 'label.labels.txt', classes, how)


def _class_names(file: pathlib.Path, classes: int, how: str) -> tuple[str, ...]:
  if not file.exists():
    if not 2 <= classes <= 10**6:
      raise _unread(file.with_name(FEATURES), f'{classes} classes', how)
    return tuple(str(n) for n in range(classes))
  text = untrusted.read_bytes(file, DataError, _MOST_TEXT)
  lines = text.decode(errors='surrogateescape').split('\n')
  names = tuple(line.strip() for line in lines if line.strip())
  if len(names) != classes:
    raise DataError(f'{file} has {len(names)} names for the {classes} classes of '
                    f'{FEATURES}; copy both again. {how}')
  return names


def _named_classes(content: Any) -> Iterator[Any]:
  """Every Python class that the file names, also in JSON within a text."""
  if isinstance(content, list):
    for value in content:
      yield from _named_classes(value)
  elif isinstance(content, dict):
    for key, value in content.items():
      # A feature may be called 'type'; it is then described by an object.
      if key in _CLASS_KEYS and not isinstance(value, dict):
        yield value
      yield from _named_classes(value)
  elif isinstance(content, str) and content.lstrip().startswith(('{', '[')):
    try:
      within = json.loads(content)
    except (ValueError, RecursionError):
      return
    yield from _named_classes(within)


def _json(file: pathlib.Path, how: str) -> dict[str, Any]:
  try:
    content = json.loads(untrusted.read_bytes(file, DataError, _MOST_TEXT))
    if not isinstance(content, dict):
      raise ValueError(f'a {type(content).__name__}, wanted an object')
    return content
  except (ValueError, RecursionError) as error:
    kind = untrusted.describe(file)
    kind = '' if kind in ('', 'JSON text') else f'it is {kind}; '
    raise _unread(file, f'{kind}{error}', how) from error


def _unread(file: pathlib.Path, reason: str, how: str) -> DataError:
  return DataError(f'{file} cannot be read ({reason[:300]}); delete {file.parent}. {how}')
