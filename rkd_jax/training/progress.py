"""One progress bar with a time estimate over all stages of a command."""

import contextlib
import sys
from collections.abc import Iterator

import tqdm


class Progress:
  """Counts network passes over a batch, the unit in which all stages cost.

  A training step with a PGD-10 attack counts for about eleven plain ones, so
  that the remaining time is right across stages of different kinds.
  """

  def __init__(self, total: int = 0, *, enabled: bool | None = None):
    """Opens a bar of `total` passes; by default only on a terminal or notebook."""
    self._label = ''
    self._bar = tqdm.tqdm(
        total=total, disable=None if enabled is None else not enabled,
        file=sys.stderr, unit='pass', smoothing=0.05, mininterval=0.3,
        bar_format='{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}')

  def advance(self, passes: int) -> None:
    """Counts work that was done, or found done."""
    self._bar.update(passes)

  def label(self, text: str) -> None:
    """Puts a text before the names of all stages that follow."""
    self._label = text

  def stage(self, text: str) -> None:
    """Names what runs now, left of the bar."""
    self._bar.set_description_str(f'{self._label + text:<40.40}')

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
