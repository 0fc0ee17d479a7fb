"""One process at a time in the directory of a run.

The kernel holds the lock and lets go of it when the process ends, however it ends.
"""

import contextlib
import os
import pathlib
import socket
import threading
import warnings
from collections.abc import Iterator

from rkd_jax import files
from rkd_jax.errors import ConfigError

try:
  import fcntl
except ImportError:  # No POSIX system: nothing is locked there.
  fcntl = None

FILE = '.lock'
_held: dict[str, int] = {}  # Directory: the thread of this process that has it.


@contextlib.contextmanager
def hold(folder: str | os.PathLike) -> Iterator[None]:
  """Holds the lock of a directory, which is made if absent, for a block.

  What killed writers left in the directory of a run is removed.
  A block inside the block, of the same thread, may ask for it again.

  Raises:
    ConfigError: Another process or thread has it; its pid and host are named.
    CheckpointError: The directory cannot be written to.
  """
  folder = pathlib.Path(folder)
  key = os.path.realpath(folder)
  if _held.get(key) == threading.get_ident():
    yield
    return
  with files.naming(folder / FILE):
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = files.open_lock(folder / FILE)
  try:
    _lock(descriptor, folder)
    _held[key] = threading.get_ident()
    try:
      files.sweep(folder)
      yield
    finally:
      del _held[key]
  finally:
    os.close(descriptor)  # And the lock with it.


def _lock(descriptor, folder):
  if fcntl is None:
    return
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    owner = os.pread(descriptor, 200, 0).decode(errors='replace').strip()
    raise ConfigError(
        f'{folder} is in use by {owner or "another process"}: wait until it has ended, '
        'or use another --workdir') from None
  except OSError as error:
    warnings.warn(f'{folder}: this file system has no locks ({error.strerror}); let one '
                  'process at a time work there', stacklevel=4)
    return
  with contextlib.suppress(OSError):  # The disk may be full; the lock holds all the same.
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f'pid {os.getpid()} on {socket.gethostname()}\n'.encode(), 0)
