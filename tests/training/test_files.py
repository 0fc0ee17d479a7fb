"""Checkpoints, metrics and the loop: what a run leaves and how it goes on."""

import contextlib
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rkd_jax import signals
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


def flip(path, place):
  content = bytearray(path.read_bytes())
  content[place] ^= 4
  path.write_bytes(content)


def largest(folder):
  return max((path for path in folder.rglob('*') if path.is_file()),
             key=lambda path: path.stat().st_size)


def five(folder, size=3):
  """Checkpoints 2 (the best), 4 and 5 of five."""
  saved = Checkpoints(folder)
  for step, score in ((1, 0.5), (2, 0.9), (3, 0.4), (4, None), (5, 0.3)):
    state = make_state(step).replace(
        variables={'params': {'w': step + jnp.arange(size) / 7}, 'batch_stats': {}})
    saved.save(state, score and {'score': score}, {'epoch': step})
  saved.close()
  return make_state(0).replace(
      variables={'params': {'w': jnp.zeros(size)}, 'batch_stats': {}})


def resumed(folder, template):
  """(step, what came with it) of a resumed state whose values are right."""
  checkpoints = Checkpoints(folder)
  try:
    state, more = checkpoints.resume(template)
    step, size = int(state.step), len(template.variables['params']['w'])
    np.testing.assert_array_equal(state.variables['params']['w'],
                                  step + jnp.arange(size) / 7)
    assert checkpoints.latest == step and more == {'epoch': step}
    assert int(checkpoints.restore(template, checkpoints.best).step) == 2
    return step
  finally:
    checkpoints.close()


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tmp_path):
  template = five(tmp_path / 'c', size=5000)
  data = largest(tmp_path / 'c' / '5')
  flip(data, data.stat().st_size // 2)  # orbax reads it without a word.
  with pytest.warns(UserWarning, match='checkpoint 5 in .* goes on from step 4'):
    assert resumed(tmp_path / 'c', template) == 4
  saved = Checkpoints(tmp_path / 'c')  # And the run goes on, writing 5 again.
  saved.resume(template)
  saved.save(template.replace(step=jnp.int32(5)), None)
  saved.close()
  assert sorted(p.name for p in (tmp_path / 'c').iterdir()) == ['2', '4', '5']


@pytest.mark.parametrize('score', ['{"score": 0.95}', '{'])
def test_a_changed_score_does_not_make_another_checkpoint_the_best(tmp_path, score):
  template = five(tmp_path / 'c')
  (tmp_path / 'c' / '5' / 'metrics' / 'metrics').write_text(score)
  with pytest.warns(UserWarning, match='checkpoint 5'):
    assert resumed(tmp_path / 'c', template) == 4


def test_without_the_best_one_it_says_what_is_there(tmp_path):
  template = five(tmp_path / 'c')
  data = largest(tmp_path / 'c' / '2')
  data.write_bytes(data.read_bytes()[:10])
  checkpoints = Checkpoints(tmp_path / 'c')
  with pytest.raises(CheckpointError) as error:
    checkpoints.resume(template)
  checkpoints.close()
  for part in ('checkpoint 2 in', 'damaged', 'checkpoint 4 is sound, but the best',
               'delete that directory'):
    assert part in str(error.value)
  assert '\n' not in str(error.value)
  assert sorted(p.name for p in (tmp_path / 'c').iterdir()) == ['2', '4', '5']


def test_checkpoints_of_an_older_version_are_taken(tmp_path):
  """They hold the state alone, as orbax's single item."""
  keep = ocp.checkpoint_managers.LatestN(2)
  manager = ocp.CheckpointManager(tmp_path / 'c', options=ocp.CheckpointManagerOptions(
      best_fn=lambda metrics: metrics['score'], preservation_policy=keep))
  for step, score in ((1, 0.9), (2, 0.5)):
    manager.save(step, args=ocp.args.StandardSave(make_state(step, step / 3)),
                 metrics={'score': score})
  manager.close()
  checkpoints = Checkpoints(tmp_path / 'c')
  with pytest.warns(UserWarning, match='checkpoint 2 .* older version, without a digest'):
    state, more = checkpoints.resume(make_state(0))
  assert (int(state.step), more, checkpoints.best) == (2, {}, 1)
  checkpoints.save(make_state(3), {'score': 0.7})
  checkpoints.close()
  assert checkpoints.best == 1


def test_asked_to_stop_inside_an_epoch_it_goes_on_there_with_the_same_bits(tmp_path):
  """At every scan of two epochs; weights, order and logged means are compared."""
  def plan(stop_at):
    calls = []

    def scan(state, frozen, data, order):
      calls.append(1)
      if len(calls) == stop_at:
        os.kill(os.getpid(), signal.SIGTERM)
      drawn = jnp.cumsum(order.sum(1).astype(jnp.float32)) / 3 + state.variables['w']
      return (state.replace(step=state.step + len(order), variables={'w': drawn[-1]}),
              {'loss': drawn, 'grad_norm': drawn})

    return loop.Plan(
        scan_at=lambda epoch: scan, frozen={},
        data={'image': np.zeros((12, 1)), 'label': np.zeros(12)},
        order_key=jax.random.key(0), epochs=2, batch_size=2, scan_steps=2,
        validate=lambda state: {'score': 0.5}, validate_every=2, checkpoint_every=2,
        step_passes=1)

  def run(folder, stop_at=0):
    with contextlib.closing(Checkpoints(folder / 'c')) as checkpoints:
      start = make_state(0).replace(variables={'w': jnp.float32(0)})
      state, begun = checkpoints.resume(start) or (start, None)
      with contextlib.closing(metrics.MetricsLog(folder, step=int(state.step))) as log:
        with signals.deferred():
          return loop.fit(state, plan(stop_at), checkpoints, log,
                          progress.Progress(enabled=False), begun)

  def rows(folder):
    return [{name: value for name, value in row.items() if name != 'images_per_second'}
            for row in metrics.read(folder / 'metrics.jsonl')]

  expected = run(tmp_path / 'whole')
  for stop_at in range(1, 7):
    folder = tmp_path / str(stop_at)
    with pytest.raises(signals.Interrupted), signals.listening():
      run(folder, stop_at)
    assert [int(p.name) for p in (folder / 'c').iterdir()] == [2 * stop_at]
    state = run(folder)
    assert state.variables['w'].tobytes() == expected.variables['w'].tobytes()
    assert rows(folder) == rows(tmp_path / 'whole')
