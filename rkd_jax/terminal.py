"""Output of the command: where it is closed, lacks a character, or shows warnings."""

import codecs
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator

_PLAIN = {'\N{PLUS-MINUS SIGN}': '+-'}  # For terminals that show ASCII alone.


def prepare() -> None:
  """Output works where it is closed, or where the terminal lacks a character.

  A closed descriptor is opened as /dev/null: else the next file that is opened, perhaps
  one with weights, would get what C++ libraries print.
  """
  for descriptor in (0, 1, 2):
    try:
      os.fstat(descriptor)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # Gets the lowest free number: this one.
  sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
  codecs.register_error('rkd', lambda error: (
      ''.join(_PLAIN.get(char, '?') for char in error.object[error.start:error.end]),
      error.end))
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, 'reconfigure'):
      stream.reconfigure(errors='rkd')


@contextlib.contextmanager
def short_warnings() -> Iterator[None]:
  """Warnings are one line, without the place in the source."""
  before = warnings.formatwarning
  warnings.formatwarning = lambda message, *_: f'rkd: warning: {message}\n'
  try:
    yield
  finally:
    warnings.formatwarning = before
