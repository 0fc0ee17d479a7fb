"""Metrics of a run: one JSON line an epoch, and the same for TensorBoard."""

import pathlib

import tensorboardX

from rkd_jax import files


def read(path: str | pathlib.Path) -> list[dict]:
  """All lines of a metrics file that are whole; a warning names the others."""
  return files.read_lines(path)


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
    files.write_lines(self._path, kept)
    self._board = tensorboardX.SummaryWriter(
        str(workdir / 'tensorboard'), purge_step=step + 1)

  def write(self, step: int, epoch: int, values: dict[str, float]) -> None:
    """Adds the values of one epoch, which ended after `step` updates."""
    files.append_line(self._path, {'step': step, 'epoch': epoch, **values})
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def close(self) -> None:
    """Flushes what TensorBoard has not seen yet."""
    self._board.close()
