"""Checkpoints of a run: the latest and the best, written in the background."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from rkd_jax.errors import CheckpointError

SCORE = 'score'  # The metric in [0, 1], larger is better, that 'best' goes by.
_NOT_VALIDATED = {SCORE: -1.0}  # Below every score.


class Checkpoints:
  """The checkpoints below one directory.

  A checkpoint appears under its final name only once it is complete, so a
  process that is killed while writing leaves the one before it in place.
  """

  def __init__(self, directory: str | pathlib.Path):
    self._directory = pathlib.Path(directory).resolve()
    keep = policies.AnyPreservationPolicy([
        policies.LatestN(1),
        policies.BestN(get_metric_fn=lambda metrics: metrics[SCORE], n=1)])
    self._manager = ocp.CheckpointManager(
        self._directory,
        options=ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,
            best_fn=lambda metrics: metrics[SCORE],
            preservation_policy=keep))

  def save(self, state: Any, metrics: dict[str, float] | None) -> None:
    """Starts to write a state under its step.

    Args:
      state: a `TrainState`; copied first, as the next step donates its buffers.
      metrics: validation results with a 'score', or None between validations.
    """
    step = int(state.step)
    copy = jax.tree.map(jnp.copy, state)
    self._manager.save(step, args=ocp.args.StandardSave(copy),
                       metrics=metrics or _NOT_VALIDATED)

  @property
  def latest(self) -> int | None:
    """Step of the newest complete checkpoint, None if there is none."""
    return self._manager.latest_step()

  @property
  def best(self) -> int | None:
    """Step of the one with the highest score, None if there is none."""
    return self._manager.best_step()

  def restore(self, template: Any, step: int | None = None) -> Any:
    """The state saved at a step (default: the latest), laid out as `template`.

    Raises:
      CheckpointError: there is none, it is damaged, or it is of another shape.
    """
    step = self.latest if step is None else step
    if step is None:
      raise CheckpointError(f'{self._directory} holds no complete checkpoint')
    try:
      return self._manager.restore(
          step, args=ocp.args.StandardRestore(template))
    except (ValueError, KeyError, TypeError, OSError) as error:
      reason = str(error).strip().splitlines()
      raise CheckpointError(
          f'checkpoint {step} in {self._directory} cannot be restored: '
          f'{reason[0] if reason else type(error).__name__}. It is damaged, or '
          'of a run with another model, method or optimiser.') from error

  def wait(self) -> None:
    """Returns once everything that was saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Finishes writing and releases the directory."""
    self._manager.close()
