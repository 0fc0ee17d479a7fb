"""Metrics of a run: one JSON line an epoch, and the same for TensorBoard."""

import json
import os
import pathlib

import tensorboardX


def read(path: str | pathlib.Path) -> list[dict]:
  """All complete lines of a metrics file; a torn last line is left out."""
  path = pathlib.Path(path)
  if not path.exists():
    return []
  rows = []
  for line in path.read_text().splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break  # Written while the process was killed: training repeats it.
  return rows


class MetricsLog:
  """Appends to `metrics.jsonl` and `tensorboard/` of one working directory."""

  def __init__(self, workdir: str | pathlib.Path, *, step: int):
    """Opens the log of a run that goes on after `step` updates.

    Lines of later steps are dropped: they were written after the checkpoint
    from which the run goes on, and will be written again.
    """
    workdir = pathlib.Path(workdir)
    self._path = workdir / 'metrics.jsonl'
    kept = [row for row in read(self._path) if row['step'] <= step]
    partial = self._path.with_suffix('.partial')
    partial.write_text(''.join(json.dumps(row) + '\n' for row in kept))
    os.replace(partial, self._path)
    self._board = tensorboardX.SummaryWriter(
        str(workdir / 'tensorboard'), purge_step=step + 1)

  def write(self, step: int, epoch: int, values: dict[str, float]) -> None:
    """Adds the values of one epoch, which ended after `step` updates."""
    with self._path.open('a') as file:
      file.write(json.dumps({'step': step, 'epoch': epoch, **values}) + '\n')
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def close(self) -> None:
    """Flushes what TensorBoard has not seen yet."""
    self._board.close()
