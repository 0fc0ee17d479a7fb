"""One progress bar with a time estimate over all stages of a command."""

import contextlib
import sys
from collections.abc import Iterator

import tqdm

from rkd_jax import signals


class Progress:
  """Counts network passes over a batch, the unit in which all stages cost.

  A training step with a PGD-10 attack counts for about eleven plain ones, so
  that the remaining time is right across stages of different kinds.
  """

  def __init__(self, total: int = 0, *, enabled: bool | None = None):
    """Opens a bar of `total` passes; by default only where stderr is a terminal.

    Elsewhere, in a log file for example, stages are lines of text.
    """
    self._label = ''
    self._bar = tqdm.tqdm(
        total=total, disable=None if enabled is None else not enabled,
        file=sys.stderr, unit='pass', smoothing=0.05, mininterval=0.3,
        bar_format='{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}')
    self._lines = enabled is None and self._bar.disable

  def advance(self, passes: int) -> None:
    """Counts work that was done, or found done."""
    self._bar.update(passes)

  def label(self, text: str) -> None:
    """Puts a text before the names of all stages that follow."""
    self._label = text

  def stage(self, text: str) -> None:
    """Names what runs now: left of the bar, or as a line where there is none.

    Raises:
      Interrupted: the process was asked to stop; so does `detail`.
    """
    signals.poll()
    if self._lines:
      print(self._label + text, file=sys.stderr, flush=True)
    self._bar.set_description_str(f'{self._label + text:<40.40}')

  def detail(self, text: str) -> None:
    """Adds to the name of the stage how far it is, on the bar only."""
    signals.poll()
    self._bar.set_postfix_str(text)

  def close(self) -> None:
    """Ends the bar."""
    self._bar.close()


@contextlib.contextmanager
def bar(total: int = 0, *, enabled: bool | None = None) -> Iterator[Progress]:
  """A `Progress` that is closed whatever happens."""
  progress = Progress(total, enabled=enabled)
  try:
    yield progress
  finally:
    progress.close()
