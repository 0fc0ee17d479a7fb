"""SIGINT and SIGTERM: stop at a point from which the same command continues.

An exception that a signal handler raises gets lost where it meets a callback of a C
library. So the handler also leaves a note, which the stages of a run read.
"""

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Iterator

_HEARD = (signal.SIGINT, signal.SIGTERM)
_NOTE = (b'\nrkd: interrupted: stops when its work is safe; a second signal stops it at '
         b'once\n')


class Interrupted(KeyboardInterrupt):
  """The process was asked to stop.

  Attributes:
    number: The signal.
  """

  def __init__(self, number: int):
    super().__init__(signal.Signals(number).name)
    self.number = number


_noted: int | None = None
_deferred = 0


@contextlib.contextmanager
def listening() -> Iterator[None]:
  """Handles both signals during a block; only the main thread can, others go without."""
  global _noted
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  _noted = None
  _hush()
  before = {number: signal.signal(number, _note) for number in _HEARD
            if signal.getsignal(number) is not signal.SIG_IGN}  # As nohup wants it.
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
    _noted = None


@functools.cache
def _hush() -> None:
  """Keeps Python from printing a traceback of the exception that a callback swallowed."""
  shown = sys.unraisablehook

  def hook(what):
    if not isinstance(what.exc_value, Interrupted):
      shown(what)

  sys.unraisablehook = hook


def _note(number, frame):
  """First signal: a note, and an exception unless that is deferred. Second: the end."""
  global _noted
  if _noted is not None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return
  _noted = number
  if not _deferred:
    raise Interrupted(number)
  with contextlib.suppress(OSError):
    os.write(2, _NOTE)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
  """A block that asks `pending` itself; what it did not heed is raised at its end."""
  global _deferred
  _deferred += 1
  try:
    yield
  finally:
    _deferred -= 1
  poll()


def pending() -> bool:
  """Whether the process was asked to stop."""
  return _noted is not None


def poll() -> None:
  """Raises Interrupted if the process was asked to stop."""
  if _noted is not None and not _deferred:
    raise Interrupted(_noted)


def stop() -> None:
  """Raises Interrupted in a deferred block, where `pending` is true."""
  raise Interrupted(_noted or signal.SIGINT)
