"""The inner maximisation: an exact case, the ramp, what it must not do."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import attacks
from rkd_jax.distill import adversary
from rkd_jax.models.network import BoundNetwork, Network


class TwoClasses(nn.Module):
  @nn.compact
  def __call__(self, x, train=False, tap=None):
    return nn.Dense(2)(x.reshape(len(x), -1))


def two_classes(seed):
  kernel = np.random.default_rng(seed).normal(size=(4, 2))
  return kernel, BoundNetwork(Network(TwoClasses()), {
      'params': {'Dense_0': {'kernel': jnp.asarray(kernel, jnp.float32),
                             'bias': jnp.zeros(2)}}, 'batch_stats': {}})


@pytest.mark.parametrize('start', [adversary.UNIFORM, adversary.NEARBY],
                         ids=['uniform', 'nearby'])
def test_linear_student_is_attacked_exactly(lab, start):
  """Two classes: the gradient's sign is constant, so the corner is the answer."""
  kernel, student = two_classes(0)
  batch = lab.batch_of(1)
  label = np.asarray(batch.label) % 2
  batch = dataclasses.replace(batch, label=jnp.asarray(label))
  attack = adversary.make_adversary(
      {'eps': 0.3, 'step_size': 0.6, 'steps': 1}, epochs=1, start=start)
  towards = np.sign(kernel[:, 1 - label] - kernel[:, label]).T.reshape(
      batch.image.shape)
  expected = np.clip(np.asarray(batch.image) + 0.3 * towards, 0, 1)
  np.testing.assert_allclose(attack(student, batch), expected, atol=1e-6)


def test_attack_on_the_distance_to_a_teacher(lab):
  """The teacher is sure of a class, so the attack moves the student off it."""
  kernel, student = two_classes(0)
  batch = lab.batch_of(1)
  teacher_logits = jnp.tile(jnp.array([40.0, 0.0]), (lab.B, 1))
  attack = adversary.make_adversary(
      {'eps': 0.1, 'step_size': 0.2, 'steps': 1}, epochs=1,
      start=adversary.NEARBY)
  towards = np.sign(kernel[:, 1] - kernel[:, 0]).reshape(1, *lab.SHAPE)
  np.testing.assert_allclose(
      attack(student, batch, attacks.kl_to(teacher_logits)),
      np.asarray(batch.image) + 0.1 * towards, atol=1e-6)


def test_ramp_of_eps_and_step(lab):
  """eps_warmup 0.4 of 10 epochs: a quarter more in each of the first four."""
  _, student = two_classes(0)
  batch = lab.batch_of(1)
  batch = dataclasses.replace(batch, label=batch.label % 2)
  ramp = {'eps': 0.16, 'step_size': 0.5, 'steps': 1, 'eps_warmup': 0.4}
  corner = adversary.make_adversary(ramp, epochs=10, start=adversary.UNIFORM)
  # A step that does not reach the border, so that its own length shows.
  short = adversary.make_adversary(
      {**ramp, 'step_size': 0.08}, epochs=10, start=adversary.NEARBY)

  def moved(attack):
    fn = lambda epoch: attack(student, dataclasses.replace(batch, epoch=epoch))
    compiled = jax.jit(fn, compiler_options=lab.QUICK)
    return lambda epoch: np.abs(compiled(jnp.int32(epoch)) - batch.image)

  by_eps, by_step = moved(corner), moved(short)
  for epoch, factor in (0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (9, 1.0):
    np.testing.assert_allclose(by_eps(epoch), 0.16 * factor, atol=1e-6)
    np.testing.assert_allclose(by_step(epoch), 0.08 * factor, atol=0.006)


def test_l2_threat(lab):
  _, student = two_classes(0)
  batch = lab.batch_of(1)
  batch = dataclasses.replace(batch, label=batch.label % 2)
  attack = adversary.make_adversary(
      {'norm': 'l2', 'eps': 0.2, 'step_size': 0.2, 'steps': 2}, epochs=1,
      start=adversary.UNIFORM)
  moved = np.asarray(attack(student, batch) - batch.image).reshape(lab.B, -1)
  np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 0.2, rtol=1e-4)


def test_examples_do_not_influence_each_other(lab):
  """A student with BatchNorm is attacked in evaluation mode."""
  student, batch = lab.bound('normed', 1), lab.batch_of(2)
  attack = adversary.make_adversary(lab.THREAT, epochs=1,
                                    start=adversary.UNIFORM)
  alone = dataclasses.replace(batch, image=batch.image[:2],
                              label=batch.label[:2], key=batch.key[:2])
  np.testing.assert_allclose(
      attack(student, alone), attack(student, batch)[:2], atol=1e-6)


def test_no_gradient_through_the_images(lab):
  student, batch = lab.bound('linear', 1), lab.batch_of(2)
  attack = adversary.make_adversary(lab.THREAT, epochs=1,
                                    start=adversary.UNIFORM)
  gradient = jax.grad(lambda params: jnp.sum(attack(
      BoundNetwork(student.network, {**student.variables, 'params': params}),
      batch)))(student.variables['params'])
  jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), gradient)
