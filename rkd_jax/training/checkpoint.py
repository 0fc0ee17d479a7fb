"""Checkpoints of a run: the two latest and the best, written in the background.

orbax writes them, without a checksum. Beside the state, inside the same checkpoint, lies
what is needed to trust it: a digest of the arrays, the score and which checkpoint was
the best so far. Both appear at once or not at all.
"""

import contextlib
import functools
import json
import logging
import pathlib
import shutil
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from rkd_jax import files
from rkd_jax.errors import CheckpointError

SCORE = 'score'  # The metric in [0, 1], larger is better, that 'best' goes by.
_FULL = ('RESOURCE_EXHAUSTED', 'No space left', 'File too large', 'quota exceeded')
_NOT_VALIDATED = -1.0  # Below every score.
# Names of the items of a checkpoint; the first is orbax's own for a single item, under
# which older versions of this library wrote the state, without the second.
_STATE, _CHECK = 'default', 'check'


class Checkpoints:
  """The checkpoints below one directory.

  A checkpoint appears under its final name only once it is complete, so a
  process that is killed while writing leaves the one before it in place.
  """

  def __init__(self, directory: str | pathlib.Path):
    self._directory = pathlib.Path(directory).resolve()
    _hush()
    _mend_scores(self._directory)
    keep = policies.AnyPreservationPolicy([
        policies.LatestN(2),
        policies.BestN(get_metric_fn=lambda metrics: metrics[SCORE], n=1)])
    with self._explained('cannot be opened'):
      self._manager = ocp.CheckpointManager(
          self._directory,
          options=ocp.CheckpointManagerOptions(
              cleanup_tmp_directories=True,
              best_fn=lambda metrics: metrics[SCORE],
              preservation_policy=keep),
          item_handlers={_STATE: ocp.StandardCheckpointHandler(),
                         _CHECK: ocp.JsonCheckpointHandler()})
    self._best = None  # (score, step) of the best so far.

  def save(self, state: Any, metrics: Mapping[str, float] | None,
           more: dict[str, Any] | None = None) -> None:
    """Starts to write a state under its step.

    Args:
      state: a `TrainState`; copied first, as the next step donates its buffers.
      metrics: validation results with a 'score', or None between validations.
      more: JSON values that `resume` returns with the state.

    Raises:
      CheckpointError: it cannot be written, or the one before could not.
    """
    step = int(state.step)
    copy = jax.tree.map(jnp.copy, state)
    score = float(metrics[SCORE]) if metrics else _NOT_VALIDATED
    best = max(filter(None, (self._best, (score, step))))  # Of equals the later one.
    check = {'arrays': _digest(copy), SCORE: score, 'best': list(best),
             'more': more or {}}
    with self._explained('cannot be written'):
      self._manager.save(
          step, metrics={SCORE: score}, args=ocp.args.Composite(**{
              _STATE: ocp.args.StandardSave(copy),
              _CHECK: ocp.args.JsonSave({**check, files.DIGEST: files.digest(check)})}))
    self._best = best

  @property
  def latest(self) -> int | None:
    """Step of the newest complete checkpoint, None if there is none."""
    return self._manager.latest_step()

  @property
  def best(self) -> int | None:
    """Step of the one with the highest score, None if there is none."""
    return self._manager.best_step()

  def resume(self, template: Any) -> tuple[Any, dict[str, Any]] | None:
    """Reads and checks every checkpoint, and removes what cannot be trusted.

    Damaged ones are named in warnings.

    Args:
      template: a state of the same structure, shapes and dtypes.

    Returns:
      (state, what `save` got as `more`) of the newest checkpoint that is sound, as is the
      best one known by then. None if there are no checkpoints.

    Raises:
      CheckpointError: there are some, but none like that; what is wrong with each.
    """
    checks, bad, state = {}, {}, None
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        loaded, checks[step] = self._load(template, step)
      except CheckpointError as error:
        bad[step] = str(error)
      else:
        state = loaded if state is None else state
    usable = [step for step, check in checks.items() if check['best'][1] in checks]
    if not usable:
      if not bad and not checks:
        return None
      wrong = [bad.get(step) or f'checkpoint {step} is sound, but the best one before it '
               'is not' for step in sorted(bad | checks)]
      raise CheckpointError(
          f'{"; ".join(wrong)}. No other checkpoint is left in {self._directory}: '
          'delete that directory, and the same command trains from the start')
    newest = max(usable)
    for step in sorted(bad):
      warnings.warn(f'{bad[step]}: removed; the run goes on from step {newest}',
                    stacklevel=2)
    for step in [*bad, *(step for step in checks if step > newest)]:
      shutil.rmtree(self._directory / str(step))
    self._manager.reload()
    if newest != max(checks):
      state, _ = self._load(template, newest)
    self._best = tuple(checks[newest]['best'])
    return state, checks[newest]['more']

  def restore(self, template: Any, step: int | None = None) -> Any:
    """The state saved at a step (default: the latest), laid out as `template`.

    Raises:
      CheckpointError: there is none, it is damaged, or it is of another shape.
    """
    step = self.latest if step is None else step
    if step is None:
      raise CheckpointError(f'{self._directory} holds no complete checkpoint')
    return self._load(template, step)[0]

  def _load(self, template, step):
    """(state, check) of one checkpoint; CheckpointError if they do not fit."""
    folder = self._directory / str(step)
    checked = (folder / _CHECK).exists()
    try:
      items = {_STATE: ocp.args.StandardRestore(template)}
      if checked:
        items[_CHECK] = ocp.args.JsonRestore()
      loaded = self._manager.restore(step, args=ocp.args.Composite(**items))
      score = self._manager.metrics(step)[SCORE]
    except Exception as error:  # orbax raises anything, bare Exceptions too.
      raise CheckpointError(
          f'checkpoint {step} in {self._directory} cannot be restored '
          f'({files.first_line(error)}): it is damaged, or of a run with another model, '
          'method or optimiser') from error
    state = loaded[_STATE]
    if not checked:
      warnings.warn(f'checkpoint {step} in {self._directory} is of an older version, '
                    'without a digest: it is taken as it is', stacklevel=2)
      return state, {SCORE: score, 'best': [score, self._manager.best_step()], 'more': {}}
    check = dict(loaded[_CHECK])
    stored = check.pop(files.DIGEST, None)
    if (stored != files.digest(check) or check[SCORE] != score
        or check['arrays'] != _digest(state)):
      raise CheckpointError(f'checkpoint {step} in {self._directory} is damaged: its '
                            'content does not match its digest')
    return state, check

  def wait(self) -> None:
    """Returns once everything that was saved is on disk."""
    with self._explained('cannot be written'):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Finishes writing and releases the directory."""
    with self._explained('cannot be written'):
      self._manager.close()

  @contextlib.contextmanager
  def _explained(self, what):
    """Errors of orbax as one line."""
    try:
      yield
    except Exception as error:
      reason = files.first_line(error)
      if any(words in str(error) for words in _FULL):
        reason = 'the disk is full; once there is room, the same command continues'
      raise CheckpointError(
          f'{self._directory}: a checkpoint {what}: {reason}') from error


def _mend_scores(directory) -> None:
  """Makes unreadable scores readable, without which orbax does not open a directory.

  `Checkpoints.resume` sees then that they do not belong to their checkpoint.
  """
  for path in directory.glob('*/metrics/metrics'):
    try:
      float(json.loads(path.read_bytes())[SCORE])
    except (ValueError, TypeError, LookupError) as error:
      warnings.warn(f'{path}: damaged ({files.first_line(error)}), not counted',
                    stacklevel=3)
      files.write_text(path, json.dumps({SCORE: _NOT_VALIDATED}))


@functools.cache
def _hush() -> None:
  """Keeps threads of orbax and tensorstore from printing errors that are raised, too.

  Of a damaged file or a full disk they print tracebacks by the dozen, and callbacks that
  come late complain about a loop that is closed; one error with one line is enough.
  """
  def is_ours(record):
    failed = str(record.exc_info[1]) if record.exc_info else ''
    return 'orbax' in record.pathname or 'OCDBT' in failed or 'local file' in failed

  for name in ('absl', 'asyncio'):
    logging.getLogger(name).addFilter(lambda record: not is_ours(record))
  shown = sys.unraisablehook

  def hook(what):
    if str(what.exc_value) != 'Event loop is closed':
      shown(what)

  sys.unraisablehook = hook


def _digest(state) -> str:
  """Of every array of a state with its place in the tree."""
  arrays = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    arrays[jax.tree_util.keystr(path)] = np.asarray(leaf)
  return files.digest_arrays(arrays)
