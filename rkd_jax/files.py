"""Every file that the library writes: whole or not at all, and checked when it is read.

A writer fills a file beside its target and renames it, so that a process that is killed
leaves the old content or the new one. JSON files carry a digest of their content, which
shows a flipped bit, a cut or an edit; files without one, of an older version, are taken.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import pathlib
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy

from rkd_jax.errors import CheckpointError, ConfigError

DIGEST = 'digest'  # The key of a JSON file and the metadata entry of a weight file.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Where a run writes, and what a killed writer leaves there: `<name>.<pid>.partial`, and
# `<name>.partial` or `.tmp...` of older versions.
_ROOMS = ('backdoor', 'detox', 'figures', 'images', 'tables', 'weights')
_OF_RUN = re.compile(r'(config|metrics|report)(\.jsonl?\.\d+)?\.partial')
_OF_ROOM = re.compile(r'.+\.(partial|tmp)|\.tmp.*')


def local_path(value: str | os.PathLike, what: str) -> pathlib.Path:
  """A path on this machine, with `~` expanded.

  Args:
    value: Path as a person typed it.
    what: Name of the option, for the error.

  Raises:
    ConfigError: The path is empty or the address of an object store, such as
      gs://bucket, or its `~` stands for a home directory that does not exist.
  """
  text = os.fspath(value)
  if not text:  # As of `--workdir=$UNSET`; it would be the current directory.
    raise ConfigError(f"{what} is empty; '.' is the current directory")
  scheme = re.match(r'([A-Za-z][A-Za-z0-9+.-]+):/', text)
  if scheme:
    raise ConfigError(
        f'{what} is {text!r}, but {scheme[1]}: addresses are not supported: give a '
        'directory of this machine, such as one where the store is mounted')
  try:
    return pathlib.Path(text).expanduser()
  except RuntimeError as error:
    raise ConfigError(f'{what} is {text!r}, but this account has no home directory '
                      '(HOME is not set): give the path without ~') from error


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """A binary file that appears under its name once the block has ended well.

  Args:
    path: Target; its directory is made if absent, an existing file is replaced.

  Raises:
    CheckpointError: The disk is full, or the place is not writable.
  """
  path = pathlib.Path(path)
  partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
  try:
    with naming(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      with partial.open('wb') as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
      os.replace(partial, path)
  except BaseException:
    with contextlib.suppress(OSError):
      partial.unlink()
    raise


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
  """Turns an OSError of the block into one line that names `path`."""
  try:
    yield
  except OSError as error:
    raise CheckpointError(f'{path}: cannot be written: {_advice(error)}') from error


def _advice(error: OSError) -> str:
  reason = error.strerror or str(error)
  if error.errno in _FULL:
    return (f'the disk, or what you may use of it, is full ({reason}); once there is '
            'room, the same command continues')
  if isinstance(error, PermissionError) or error.errno == errno.EROFS:
    return f'{reason}; choose a directory that you may write to'
  if isinstance(error, FileExistsError | NotADirectoryError):
    return f'{reason}; a file is where a directory is needed'
  return reason


def open_lock(path: str | os.PathLike) -> int:
  """Descriptor of a lock file, made if absent; its content stays as it is."""
  return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def write(path: str | os.PathLike, content: bytes) -> None:
  """Writes bytes, whole or not at all; raises as `writing` does."""
  with writing(path) as file:
    file.write(content)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes text as UTF-8, whole or not at all; raises as `writing` does."""
  write(path, text.encode())


def write_json(path: str | os.PathLike, content: dict[str, Any]) -> None:
  """Writes a dictionary with the digest of its content; raises as `writing` does.

  The digest comes first: without its line the file is still JSON.
  """
  write_text(path, json.dumps({DIGEST: digest(content), **content}, indent=2) + '\n')


def write_array(path: str | os.PathLike, array: np.ndarray) -> None:
  """Writes one array in NumPy's format; raises as `writing` does."""
  with writing(path) as file:
    np.save(file, array)


def write_arrays(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
  """Writes named arrays as .npz, with their digest; raises as `writing` does."""
  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  with writing(path) as file:
    np.savez(file, **arrays, **{DIGEST: np.asarray(digest_arrays(arrays))})


def write_tensors(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
  """Writes named arrays as safetensors, with their digest; raises as `writing` does."""
  write(path, safetensors.numpy.save(
      arrays, metadata={DIGEST: digest_arrays(arrays)}))


def write_figure(path: str | os.PathLike, figure: Any) -> pathlib.Path:
  """Writes a matplotlib figure as PNG; returns the path; raises as `writing` does."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=120)
  write(path, buffer.getvalue())
  return pathlib.Path(path)


def append_line(path: str | os.PathLike, row: dict[str, Any]) -> None:
  """Adds a line of JSON with its digest; a line that does not fit is taken back.

  Raises:
    CheckpointError: The disk is full, or the place is not writable.
  """
  line = _line(row).encode()
  with naming(path):
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'r+b' if os.path.exists(path) else 'w+b', buffering=0) as file:
      end = file.seek(0, os.SEEK_END)
      if end:
        file.seek(end - 1)
        if file.read(1) != b'\n':  # Torn by a kill: it stays a line of its own.
          line = b'\n' + line
      try:
        if file.write(line) != len(line):
          raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      except OSError:
        file.truncate(end)
        raise


def write_lines(path: str | os.PathLike, rows: Iterable[dict[str, Any]]) -> None:
  """Writes a file of lines as `append_line` would, whole or not at all."""
  write_text(path, ''.join(map(_line, rows)))


def _line(row):
  return json.dumps({**row, DIGEST: digest(row)[:16]}) + '\n'


def read_json(path: str | os.PathLike, remedy: str) -> dict[str, Any]:
  """Content of a JSON file as `write_json` wrote it, without the digest.

  Args:
    path: File to read.
    remedy: What to do if the file is damaged; ends the message.

  Raises:
    CheckpointError: The file is absent, damaged, edited or no JSON object.
  """
  try:
    content = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    if not isinstance(content, dict):
      raise ValueError(f'it holds a {type(content).__name__}, no object')
    stored = content.pop(DIGEST, None)
    if stored is not None and stored != digest(content):
      raise ValueError('its content does not match its digest: edited, or changed on '
                       'the disk')
    return content
  except FileNotFoundError as error:
    raise CheckpointError(f'{path}: no such file: {remedy}') from error
  except (ValueError, RecursionError, OSError) as error:
    raise CheckpointError(f'{path}: damaged ({first_line(error)}): {remedy}') from error


def stored_json(path: str | os.PathLike) -> dict[str, Any] | None:
  """Content of a stored result; None if there is none, or none that can be trusted.

  A damaged file is named in a warning: whoever gets None makes it again.
  """
  if not os.path.exists(path):
    return None
  try:
    return read_json(path, 'it is made again')
  except CheckpointError as error:
    warnings.warn(str(error), stacklevel=2)
    return None


def read_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Rows of a file of JSON lines; those that are damaged are named in one warning."""
  try:
    lines = pathlib.Path(path).read_bytes().split(b'\n')
  except FileNotFoundError:
    return []
  except OSError as error:
    raise CheckpointError(f'{path}: cannot be read: {error.strerror}') from error
  rows, bad = [], []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line.decode()) if line.strip() else None
      if row is None:
        continue
      stored = row.pop(DIGEST, None)
      if stored is not None and stored != digest(row)[:16]:
        raise ValueError
      rows.append(row)
    except (ValueError, AttributeError, TypeError, RecursionError):
      bad.append(number)
  if bad:
    numbers = ', '.join(map(str, bad))
    warnings.warn(f'{path}: damaged, or cut off, in line {numbers}, which does not '
                  'count; all others do', stacklevel=2)
  return rows


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Arrays as `write_arrays` wrote them.

  Raises:
    CheckpointError: The file is absent or damaged.
  """
  try:
    with np.load(path, allow_pickle=False) as file:
      arrays = dict(file)
    stored = arrays.pop(DIGEST, None)
    if stored is not None and str(stored) != digest_arrays(arrays):
      raise ValueError('its content does not match its digest')
    return arrays
  except Exception as error:  # A broken zip raises almost anything.
    raise CheckpointError(f'{path}: damaged ({first_line(error)})') from error


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Arrays of a safetensors file whose names and shapes need no check.

  Raises:
    CheckpointError: The file is absent or damaged.
  """
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      arrays = {name: file.get_tensor(name) for name in file.keys()}
      metadata = file.metadata()
  except FileNotFoundError as error:
    raise CheckpointError(f'{path}: no such file') from error
  except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
    raise CheckpointError(f'{path}: damaged ({first_line(error)})') from error
  check_tensors(path, arrays, metadata)
  return arrays


def check_tensors(path: str | os.PathLike, arrays: dict[str, np.ndarray],
                  metadata: dict[str, str] | None) -> None:
  """Compares arrays with the digest in the metadata of the file that they came from.

  Raises:
    CheckpointError: They differ. Files without a digest, of other programs, pass.
  """
  stored = (metadata or {}).get(DIGEST)
  if stored is not None and stored != digest_arrays(arrays):
    raise CheckpointError(f'{path}: damaged (its content does not match its digest)')


def first_line(error: BaseException) -> str:
  """First line of an error's message, or its type where it has none."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def digest(content: Any) -> str:
  """SHA-256 of JSON content, in hexadecimal; the order of keys does not matter."""
  plain = json.loads(json.dumps(content))  # Tuples are lists, keys are strings.
  return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def digest_arrays(arrays: dict[str, Any]) -> str:
  """SHA-256 of names, dtypes, shapes and values of arrays, in hexadecimal."""
  found = hashlib.sha256()
  for name in sorted(arrays):
    array = np.ascontiguousarray(arrays[name])
    found.update(f'{name}\0{array.dtype}\0{np.shape(arrays[name])}\n'.encode())
    found.update(array.reshape(-1).view(np.uint8).data)
  return found.hexdigest()


def sweep(folder: str | os.PathLike) -> None:
  """Removes what killed writers left in a run's directory, and nothing else there.

  Somebody may name a directory with files of his own, so only the names and rooms of a
  run are looked at; runs inside it, which hold a config.json, are left to themselves.
  """
  folder = pathlib.Path(folder)
  found = [path for path in folder.glob('*.partial') if _OF_RUN.fullmatch(path.name)]
  if (folder / 'config.json').exists():  # Else the rooms may be anybody's.
    for room in (folder / name for name in _ROOMS):
      if not (room / 'config.json').exists():
        found += [path for path in room.rglob('*') if _OF_ROOM.fullmatch(path.name)]
  for path in found:
    with contextlib.suppress(OSError):
      path.unlink()
