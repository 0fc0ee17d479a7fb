"""CIARD's traps: the push scale, the empty subset, phases, who is run how often.

The numbers of whole steps are in test_two_teachers.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import distill
from rkd_jax.distill import ciard
from rkd_jax.models.network import BoundNetwork, Network

STILL = {'eps': 0.0, 'step_size': 0.0, 'steps': 0}  # x' = x


@pytest.mark.parametrize('l1, l2, l3, exponent', [
    (0.05, 0.2, 3.0, -2 - 0),   # -2 and -1 against 0
    (0.2, 0.03, 0.004, -2 + 3),
    (5.0, 7.0, 2.0, 0),
    (30.0, 0.5, 0.5, 0),
    (0.0, 0.5, 0.5, -7 + 1),    # A loss of 0 counts as 1e-7 ...
    (0.5, 0.5, 0.0, -1 + 7),
    (-1e-9, 0.5, 0.5, -7 + 1),  # ... and so does one that rounds below 0.
    (0.0, 0.0, 0.0, 0)])
def test_push_scale(l1, l2, l3, exponent):
  got = ciard.push_scale(*map(jnp.float32, (l1, l2, l3)))
  np.testing.assert_allclose(got, 10.0**exponent, rtol=1e-5)


def test_push_scale_has_no_gradient():
  gradients = jax.grad(ciard.push_scale, argnums=(0, 1, 2))(0.3, 0.2, 0.5)
  assert gradients == (0, 0, 0)


def teachers_of(lab):
  return {'clean': lab.bound('linear', 31, 1.5),
          'robust': lab.bound('normed', 32)}


def test_empty_push_subset_contributes_nothing(lab):
  """Nobody is fooled: loss and gradient are those without the push term."""
  teachers, student = teachers_of(lab), lab.bound('linear', 33)
  batch = lab.batch_of(4)
  right = jnp.argmax(teachers['clean'].predict(batch.image), axis=-1)
  batch = dataclasses.replace(batch, label=right)
  got, without = (
      lab.evaluate(method.objective_at(0), student, teachers,
                   method.init_memory(teachers), batch)
      for method in (distill.make('ciard', {'push': push}, threat=STILL,
                                  epochs=10) for push in (True, False)))
  np.testing.assert_array_equal(got.loss, without.loss)
  lab.assert_trees_close(got.grads, without.grads, rtol=0, atol=0)
  assert got.metrics['push_scale'] == got.metrics['push_share'] == 0
  assert got.metrics['loss_push'] == 0
  assert 'push_scale' not in without.metrics


def test_student_that_equals_its_teachers(lab):
  """L1 = L2 = 0 on the first step and after: all stays finite."""
  teacher = lab.bound('linear', 40)
  teachers = {'clean': teacher, 'robust': teacher}
  method = distill.make('ciard', {'push_temperature': 1.0}, threat=STILL,
                        epochs=10)
  memory = method.init_memory(teachers)
  run = lab.compiled(method.objective_at(0), teacher, teachers)
  for i in range(2):
    got = run(teacher, teachers, memory, lab.batch_of(i, step=i))
    memory = got.memory
    for leaf in jax.tree.leaves((got.loss, got.grads, memory, got.metrics)):
      assert np.isfinite(leaf).all()
    np.testing.assert_allclose(got.loss, 0, atol=1e-6)
  assert memory['weights']['weight_clean'] == 0.5


@pytest.mark.parametrize('epochs, share, starts', [
    (300, 50 / 300, (0, 50)), (30, 50 / 300, (0, 5)), (10, 0.25, (0, 3)),
    (10, 0.0, (0,)), (1, 50 / 300, (0,))])
def test_phases(epochs, share, starts):
  method = distill.make('ciard', {'retrain_from': share}, threat={},
                        epochs=epochs)
  assert tuple(start for start, _ in method.phases) == starts
  for start, objective in method.phases:
    assert method.objective_at(start) is objective
  if len(starts) > 1:
    assert method.objective_at(starts[1] - 1) is method.phases[0][1]


@pytest.mark.parametrize('changes, keys', [
    ({}, {'weights', 'temperatures', 'robust', 'optimizer'}),
    ({'weights': 'fixed'}, {'temperatures', 'robust', 'optimizer'}),
    ({'temperatures': False}, {'weights', 'robust', 'optimizer'}),
    ({'retrain': False}, {'weights', 'temperatures', 'robust'}),
    ({'teacher_batch_norm': 'eval'},
     {'weights', 'temperatures', 'robust', 'optimizer'}),
    ({'retrain': False, 'teacher_batch_norm': 'eval'},
     {'weights', 'temperatures'})])
def test_memory_holds_what_changes(lab, changes, keys):
  teachers = teachers_of(lab)
  method = distill.make('ciard', changes, threat={}, epochs=300)
  memory = method.init_memory(teachers)
  assert set(memory) == keys
  robust = method.retrained(memory)
  assert set(robust) == ({'robust'} if 'robust' in keys else set())
  if robust:
    original = teachers['robust'].variables
    lab.assert_trees_close(robust['robust'], original, rtol=0, atol=0)
    # In buffers of its own: the training state, memory included, is donated.
    pointers = lambda tree: {
        leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}
    assert not pointers(robust) & pointers(original)


def test_frozen_teacher_drifts_in_train_mode_only(lab):
  """Published: R's running statistics move from the first epoch on."""
  teachers, student = teachers_of(lab), lab.bound('normed', 33)
  batch = lab.batch_of(4)
  method = distill.make('ciard', {}, threat=STILL, epochs=300)
  got = lab.evaluate(method.objective_at(0), student, teachers,
                     method.init_memory(teachers), batch)
  before = lab.float64(teachers['robust'].variables)
  _, stats = lab.forward(before, batch.image, train=True)
  lab.assert_trees_close(
      got.memory['robust']['batch_stats'], stats, rtol=1e-5, atol=1e-6)
  lab.assert_trees_close(
      got.memory['robust']['params'], before['params'], rtol=0, atol=0)
  assert abs(stats['bn']['mean'] - before['batch_stats']['bn']['mean']).max() > .01


@dataclasses.dataclass(frozen=True)
class Counting(Network):
  """Counts how often its passes are put into a program."""

  calls: dict = dataclasses.field(default_factory=dict, hash=False, compare=False)

  def predict(self, variables, images):
    self.calls['predict'] = self.calls.get('predict', 0) + 1
    return super().predict(variables, images)

  def train(self, variables, images, tap=None):
    self.calls['train'] = self.calls.get('train', 0) + 1
    return super().train(variables, images, tap)


@pytest.mark.parametrize('changes, epoch, robust, clean', [
    ({}, 0, {'train': 1}, {'predict': 2}),
    ({}, 60, {'train': 1}, {'predict': 2}),  # Targets and gradient share it.
    ({'push': False}, 60, {'train': 1}, {'predict': 1}),
    ({'teacher_batch_norm': 'eval'}, 60, {'predict': 1}, {'predict': 2})])
def test_forward_passes_of_the_teachers(lab, changes, epoch, robust, clean):
  method = distill.make('ciard', changes, threat=STILL, epochs=300)
  counted = {role: Counting(teacher.network.module)
             for role, teacher in teachers_of(lab).items()}
  teachers = {role: BoundNetwork(counted[role], teacher.variables)
              for role, teacher in teachers_of(lab).items()}
  jax.eval_shape(
      lambda memory: method.objective_at(epoch)(
          lab.bound('normed', 33), teachers, memory,
          lab.batch_of(0, epoch=epoch)).loss, method.init_memory(teachers))
  assert counted['robust'].calls == robust
  assert counted['clean'].calls == clean


def test_retraining_moves_no_gradient_into_the_student(lab):
  """The student's gradient does not depend on whether R is retrained."""
  teachers, student = teachers_of(lab), lab.bound('linear', 33)
  batch = lab.batch_of(4, epoch=60)
  method = distill.make('ciard', {}, threat=STILL, epochs=300)
  memory = method.init_memory(teachers)
  without, got = (
      lab.evaluate(objective, student, teachers, memory, batch)
      for _, objective in method.phases)
  lab.assert_trees_close(got.grads, without.grads, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(got.loss, without.loss, rtol=1e-5)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(),
                       got.memory['robust']['params'],
                       without.memory['robust']['params'])
  assert max(jax.tree.leaves(moved)) > 0


def test_whole_batch_means_are_asked_for(lab):
  """Push scale and weights are those of the global batch, not of a part."""
  teachers, student = teachers_of(lab), lab.bound('linear', 33)
  teachers['robust'] = lab.bound('linear', 7)  # No statistics of the part.
  method = distill.make('ciard', {'retrain': False}, threat=STILL, epochs=10)
  batch = lab.batch_of(4)
  memory = method.init_memory(teachers)
  whole = lab.evaluate(method.objective_at(0), student, teachers, memory, batch)

  half = dataclasses.replace(batch, image=batch.image[:3], label=batch.label[:3],
                             key=batch.key[:3])
  # Answered with the whole batch's means, in the order in which they are asked
  # for: L1, L2, two entropies, the share of the fooled, L3.
  replies = iter([
      whole.metrics['loss_adv'].mean(), whole.metrics['loss_clean'].mean(), 0.5,
      0.4, whole.metrics['push_share'], whole.metrics['loss_push']])
  part = method.objective_at(0)(
      student, teachers, memory,
      dataclasses.replace(half, mean=lambda *_: next(replies)))
  np.testing.assert_allclose(part.loss, whole.loss[:3], rtol=1e-5)
