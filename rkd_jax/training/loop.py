"""The training loop: epochs of compiled scans, validation, checkpoints."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rkd_jax.data import batches
from rkd_jax.errors import NonFiniteError
from rkd_jax.training.checkpoint import SCORE, Checkpoints
from rkd_jax.training.metrics import MetricsLog
from rkd_jax.training.progress import Progress
from rkd_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a run does, apart from what changes while it does it.

  Attributes:
    scan_at: `scan_at(epoch)` gives the compiled
      `scan(state, frozen, data, order)` of that epoch.
    frozen: variables of the teachers by role, on the device.
    data: the training split on the device, 'image' and 'label'.
    order_key: key of the order in which examples come.
    epochs, batch_size: as usual; the last, incomplete batch of an epoch is
      left out (other examples each epoch).
    scan_steps: at most so many steps in one compiled call.
    validate: `validate(state) -> metrics` with a 'score'.
    validate_every: epochs between validations; the last epoch is validated.
    checkpoint_every: epochs between checkpoints; validated epochs have one.
    step_passes: cost of a step in network passes, for the progress bar.
  """

  scan_at: Callable[[int], Callable]
  frozen: Mapping[str, Any]
  data: Mapping[str, jax.Array]
  order_key: jax.Array
  epochs: int
  batch_size: int
  scan_steps: int
  validate: Callable[[TrainState], dict[str, float]]
  validate_every: int
  checkpoint_every: int
  step_passes: int

  @property
  def steps_per_epoch(self) -> int:
    return len(self.data['label']) // self.batch_size


def chunk_length(steps: int, most: int) -> int:
  """The largest divisor of `steps` that is at most `most`.

  All compiled calls of an epoch then have one length: one compilation.
  """
  return max(n for n in range(1, min(steps, most) + 1) if steps % n == 0)


def fit(state: TrainState, plan: Plan, checkpoints: Checkpoints,
        log: MetricsLog, progress: Progress) -> TrainState:
  """Trains from `state.step` to the end of the plan.

  `state` must be at the end of an epoch, as checkpoints are; it is donated.

  Raises:
    NonFiniteError: a loss or gradient was NaN or infinite; the checkpoints of
      the epochs before are in place.
  """
  start = int(state.step) // plan.steps_per_epoch
  progress.advance(start * plan.steps_per_epoch * plan.step_passes)
  for epoch in range(start, plan.epochs):
    began = time.perf_counter()
    state, means = _train_epoch(state, plan, epoch, checkpoints, progress)
    seconds = time.perf_counter() - began
    done = epoch + 1
    step = done * plan.steps_per_epoch
    last = done == plan.epochs
    validated = None
    if last or done % plan.validate_every == 0:
      validated = plan.validate(state)
    log.write(step, done, {
        **{f'train/{name}': value for name, value in means.items()},
        **{f'validation/{name}': value
           for name, value in (validated or {}).items()},
        'images_per_second': round(
            plan.steps_per_epoch * plan.batch_size / seconds, 1)})
    if validated or done % plan.checkpoint_every == 0:
      checkpoints.save(state, validated and {SCORE: validated[SCORE]})
  checkpoints.wait()
  return state


def _train_epoch(state, plan, epoch, checkpoints, progress):
  """One epoch: (state, {metric: mean over its steps})."""
  order = batches.epoch_order(
      plan.order_key, epoch, len(plan.data['label']), plan.batch_size)
  length = chunk_length(len(order), plan.scan_steps)
  scan = plan.scan_at(epoch)
  rows, pending = [], None
  for begin in range(0, len(order), length):
    state, metrics = scan(
        state, plan.frozen, plan.data, order[begin:begin + length])
    # The scan before this one is fetched only now, so that the device never
    # waits for the host.
    if pending is not None:
      rows.append(_fetch(pending, epoch * len(order), rows, checkpoints))
      progress.advance(length * plan.step_passes)
    pending = metrics
  rows.append(_fetch(pending, epoch * len(order), rows, checkpoints))
  progress.advance(length * plan.step_passes)
  return state, {name: float(np.mean(np.concatenate([r[name] for r in rows])))
                 for name in rows[0]}


def _fetch(metrics, first_step, rows, checkpoints):
  """Metrics [K] of one scan on the host; refuses what is not finite."""
  metrics = jax.device_get(metrics)
  first_step += sum(len(row['loss']) for row in rows)
  for name in ('loss', 'grad_norm'):
    bad = np.flatnonzero(~np.isfinite(metrics[name]))
    if len(bad):
      checkpoints.wait()
      good = checkpoints.latest
      raise NonFiniteError(
          f'{name} is {metrics[name][bad[0]]} at step {first_step + bad[0]}; '
          + (f'the last good checkpoint is at step {good}'
             if good is not None else 'there is no checkpoint yet')
          + '. A learning rate that is too high is the usual cause '
          '(optimizer.learning_rate, optimizer.clip_norm).')
  return metrics
