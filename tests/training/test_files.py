"""Checkpoints, metrics and the loop: what a run leaves and how it goes on."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax.errors import CheckpointError, NonFiniteError
from rkd_jax.training import loop, metrics, progress
from rkd_jax.training.checkpoint import Checkpoints
from rkd_jax.training.state import TrainState


def make_state(step, value=0.0):
  return TrainState(
      step=jnp.int32(step), key=jax.random.key(step),
      variables={'params': {'w': jnp.full((3,), value)}, 'batch_stats': {}},
      opt_state=(jnp.zeros((3,)),), memory={'tau': jnp.float32(value)})


def test_best_and_latest_are_kept_and_come_back_bitwise(tmp_path):
  saved = Checkpoints(tmp_path / 'c')
  for step, score in ((1, 0.2), (2, 0.9), (3, 0.5), (4, None)):
    saved.save(make_state(step, step / 3), score and {'score': score})
  saved.wait()
  assert (saved.latest, saved.best) == (4, 2)
  saved.close()
  again = Checkpoints(tmp_path / 'c')
  assert (again.latest, again.best) == (4, 2)
  for step in (2, 4):
    state = again.restore(make_state(0), step)
    assert int(state.step) == step
    np.testing.assert_array_equal(
        state.variables['params']['w'], np.full(3, step / 3, np.float32))
    np.testing.assert_array_equal(jax.random.key_data(state.key),
                                  jax.random.key_data(jax.random.key(step)))
  again.close()


def test_saving_does_not_see_what_happens_to_the_state_later(tmp_path):
  """The next step donates the buffers while the checkpoint is being written."""
  saved = Checkpoints(tmp_path / 'c')
  overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s),
                      donate_argnums=0)
  big = jnp.arange(2_000_000, dtype=jnp.float32)
  state = make_state(1).replace(variables={'params': {'w': big},
                                           'batch_stats': {}})
  saved.save(state, None)
  overwrite(state.variables['params'])
  saved.wait()
  template = make_state(0).replace(
      variables={'params': {'w': jnp.zeros(2_000_000)}, 'batch_stats': {}})
  restored = saved.restore(template)
  np.testing.assert_array_equal(restored.variables['params']['w'],
                                np.arange(2_000_000, dtype=np.float32))
  saved.close()


def test_unusable_checkpoints_are_named(tmp_path):
  saved = Checkpoints(tmp_path / 'c')
  with pytest.raises(CheckpointError, match='holds no complete checkpoint'):
    saved.restore(make_state(0))
  saved.save(make_state(1), None)
  saved.wait()
  other = make_state(0).replace(memory={'other': jnp.zeros((2, 2))})
  with pytest.raises(CheckpointError, match='checkpoint 1 in .* another model'):
    saved.restore(other)
  saved.close()


def test_metrics_after_the_checkpoint_and_torn_lines_are_dropped(tmp_path):
  log = metrics.MetricsLog(tmp_path, step=0)
  for step in (10, 20, 30):
    log.write(step, step // 10, {'loss': step / 7})
  log.close()
  path = tmp_path / 'metrics.jsonl'
  path.write_text(path.read_text() + '{"step": 40, "lo')
  with pytest.warns(UserWarning, match='metrics.jsonl: damaged, or cut off, in line 4'):
    assert [row['step'] for row in metrics.read(path)] == [10, 20, 30]
  with pytest.warns(UserWarning, match='line 4'):
    log = metrics.MetricsLog(tmp_path, step=20)
  log.write(30, 3, {'loss': 1.0})
  log.close()
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert all(len(row.pop('digest')) == 16 for row in rows)
  assert rows == [{'step': 10, 'epoch': 1, 'loss': 10 / 7},
                  {'step': 20, 'epoch': 2, 'loss': 20 / 7},
                  {'step': 30, 'epoch': 3, 'loss': 1.0}]
  assert list((tmp_path / 'tensorboard').glob('events.*'))


@pytest.mark.parametrize('steps, most, expected', [
    (78, 32, 26), (390, 32, 30), (7, 32, 7), (37, 32, 1), (64, 32, 32)])
def test_chunks_divide_the_epoch(steps, most, expected):
  assert loop.chunk_length(steps, most) == expected


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  def scan(state, frozen, data, order):
    del frozen, data
    steps = state.step + jnp.arange(len(order))
    loss = jnp.where(steps == 13, jnp.nan, 1.0)
    return state.replace(step=state.step + len(order)), {
        'loss': loss, 'grad_norm': jnp.ones(len(order))}

  plan = loop.Plan(
      scan_at=lambda epoch: scan, frozen={},
      data={'image': np.zeros((10, 1)), 'label': np.zeros(10)},
      order_key=jax.random.key(0), epochs=5, batch_size=2, scan_steps=5,
      validate=lambda state: {'score': 0.5}, validate_every=1,
      checkpoint_every=1, step_passes=1)
  checkpoints = Checkpoints(tmp_path / 'c')
  log = metrics.MetricsLog(tmp_path, step=0)
  with pytest.raises(NonFiniteError,
                     match='loss is nan at step 13; .* checkpoint is at step 10'):
    loop.fit(make_state(0), plan, checkpoints, log,
             progress.Progress(enabled=False))
  assert checkpoints.latest == 10
  checkpoints.close()
