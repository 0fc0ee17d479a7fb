"""Metrics of a run: one JSON line an epoch, and the same for TensorBoard."""

import pathlib
import time

from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

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
    self._board = _Board(workdir / 'tensorboard', purge_step=step + 1)

  def write(self, step: int, epoch: int, values: dict[str, float]) -> None:
    """Adds the values of one epoch, which ended after `step` updates."""
    files.append_line(self._path, {'step': step, 'epoch': epoch, **values})
    self._board.write(step, values)

  def close(self) -> None:
    """Closes the files."""
    self._board.close()


class _Board:
  """An event file of TensorBoard, written by this thread.

  tensorboardX's own `SummaryWriter` has a thread for it, which ends when the disk is
  full; from then on whoever adds a value waits for ever.
  """

  def __init__(self, folder: pathlib.Path, *, purge_step: int):
    self._folder = folder
    with files.naming(folder):
      folder.mkdir(parents=True, exist_ok=True)
      self._writer = event_file_writer.EventsWriter(str(folder / 'events'))
    restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(event_pb2.Event(step=purge_step, session_log=restart))

  def write(self, step, values):
    for name, value in values.items():
      self._add(event_pb2.Event(step=step, summary=summary.scalar(name, value)))

  def _add(self, event):
    event.wall_time = time.time()
    with files.naming(self._folder):
      self._writer.write_event(event)
      self._writer.flush()

  def close(self):
    with files.naming(self._folder):
      self._writer.close()
