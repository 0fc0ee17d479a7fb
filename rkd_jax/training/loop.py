"""The training loop: epochs of compiled scans, validation, checkpoints."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rkd_jax import signals
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
        log: MetricsLog, progress: Progress, begun: dict | None = None) -> TrainState:
  """Trains from `state.step` to the end of the plan.

  Args:
    state: a fresh one or that of a checkpoint; it is donated.
    plan: What is trained, see `Plan`.
    checkpoints: where to; one more is written when the process is asked to stop.
    log: gets a line an epoch.
    progress: advances by the cost of every step.
    begun: what `Checkpoints.resume` returned with the state.

  Raises:
    NonFiniteError: a loss or gradient was NaN or infinite; the checkpoints of
      the epochs before are in place.
    Interrupted: the process was asked to stop, and the checkpoint is written.
  """
  start = int(state.step) // plan.steps_per_epoch
  progress.advance(int(state.step) * plan.step_passes)
  rows = _from_json(begun)
  for epoch in range(start, plan.epochs):
    began, first = time.perf_counter(), int(state.step)
    state, means = _train_epoch(state, plan, epoch, checkpoints, progress, rows)
    rows = []
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
            (done * plan.steps_per_epoch - first) * plan.batch_size / seconds, 1)})
    if validated or done % plan.checkpoint_every == 0:
      checkpoints.save(state, validated and {SCORE: validated[SCORE]})
  checkpoints.wait()
  return state


def _train_epoch(state, plan, epoch, checkpoints, progress, rows):
  """What is left of one epoch: (state, {metric: mean over its steps}).

  `rows` holds metrics [K] of the scans of this epoch that the state went through.
  """
  order = batches.epoch_order(
      plan.order_key, epoch, len(plan.data['label']), plan.batch_size)
  length = chunk_length(len(order), plan.scan_steps)
  scan = plan.scan_at(epoch)
  pending = None
  for begin in range(int(state.step) % len(order), len(order), length):
    if signals.pending():
      if pending is not None:
        rows.append(_fetch(pending, epoch * len(order), rows, checkpoints))
      _stop(state, epoch * len(order) + begin, rows, checkpoints)
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


def _stop(state, step, rows, checkpoints):
  """Leaves a checkpoint inside an epoch, with its metrics so far."""
  checkpoints.wait()
  if step and step != checkpoints.latest:
    checkpoints.save(state, None, _to_json(rows))
    checkpoints.wait()
  signals.stop()


def _to_json(rows) -> dict:
  """{metric: [dtype, values]} of an epoch's scans, without a rounding."""
  if not rows:
    return {}
  joined = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
  return {name: [str(values.dtype), values.tolist()] for name, values in joined.items()}


def _from_json(begun) -> list[dict]:
  """The rows behind `_to_json`, as one."""
  return [{name: np.asarray(values, dtype)
           for name, (dtype, values) in begun.items()}] if begun else []


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
