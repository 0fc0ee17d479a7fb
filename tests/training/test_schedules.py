"""Schedules against the papers' formulas, optimisers against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rkd_jax.errors import ConfigError
from rkd_jax.training import schedules

PER_EPOCH = 7


def values(name, epochs, at_epochs, **kwargs):
  schedule = schedules.make_schedule(
      name, learning_rate=0.1, epochs=epochs, steps_per_epoch=PER_EPOCH, **kwargs)
  return np.array([float(schedule(round(e * PER_EPOCH))) for e in at_epochs])


def test_constant():
  np.testing.assert_allclose(values('constant', 10, range(10)), 0.1)


def test_step_falls_after_the_published_epochs():
  at = [0, 214, 215, 259, 260, 284, 285, 299]
  expected = [.1, .1, .01, .01, .001, .001, .0001, .0001]
  np.testing.assert_allclose(values('step', 300, at), expected, rtol=1e-5)
  # Up to the last update of epoch 214, and from the first of 215.
  schedule = schedules.make_schedule(
      'step', learning_rate=0.1, epochs=300, steps_per_epoch=PER_EPOCH)
  assert schedule(215 * PER_EPOCH - 1) == np.float32(0.1)
  np.testing.assert_allclose(schedule(215 * PER_EPOCH), 0.01, rtol=1e-6)


def test_step_with_own_milestones_scales_by_shares():
  got = values('step', 20, [9, 10, 14, 15, 19], milestones=(0.5, 0.75),
               factor=0.5)
  np.testing.assert_allclose(got, [.1, .05, .05, .025, .025], rtol=1e-6)


def test_cosine_moves_with_every_update():
  schedule = schedules.make_schedule(
      'cosine', learning_rate=0.1, epochs=4, steps_per_epoch=PER_EPOCH)
  count = np.arange(4 * PER_EPOCH + 1)
  np.testing.assert_allclose(
      [float(schedule(n)) for n in count],
      0.05 * (1 + np.cos(np.pi * count / (4 * PER_EPOCH))), atol=1e-7)


def test_ciard_is_the_published_curve():
  def published(e):
    if e < 150:
      return 0.1
    return (0.1 * (0.5 + 0.5 * np.cos(np.pi * (e - 150) / 150))
            * np.exp(-0.01 * (e - 150) ** 2 / 150 ** 2))
  at = [0, 149, 150, 151, 200, 250, 298, 299]
  np.testing.assert_allclose(
      values('ciard', 300, at), [published(e) for e in at], rtol=1e-3)
  # The same in a tenth of the epochs, constant within each.
  at = np.array([0, 14, 15, 18.5, 22, 29.9])
  np.testing.assert_allclose(
      values('ciard', 30, at), [published(10 * np.floor(e)) for e in at],
      rtol=1e-4)


def test_ciard_of_the_retrained_teacher():
  got = [float(schedules.ciard_shape(e, 300, start=50 / 300))
         for e in (0, 50, 175, 299, 300)]
  shape = lambda p: (0.5 + 0.5 * np.cos(np.pi * p)) * np.exp(-0.01 * p * p)
  np.testing.assert_allclose(
      got, [1, 1, shape(.5), shape(249 / 250), 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', schedules.names())
def test_warmup_is_a_line_on_top(name):
  plain = schedules.make_schedule(
      name, learning_rate=0.1, epochs=10, steps_per_epoch=PER_EPOCH)
  warm = schedules.make_schedule(
      name, learning_rate=0.1, epochs=10, steps_per_epoch=PER_EPOCH, warmup=0.2)
  for count in (0, 1, 6, 13, 14, 40):
    line = min(1, (count + 1) / (2 * PER_EPOCH))
    np.testing.assert_allclose(warm(count), line * plain(count), rtol=1e-6)
  assert jax.jit(warm)(jnp.int32(3)).dtype == jnp.float32


def test_options_of_each_schedule():
  published = (215 / 300, 260 / 300, 285 / 300)
  assert {name: schedules.options(name) for name in schedules.names()} == {
      'constant': {}, 'cosine': {}, 'ciard': {'start': 0.5},
      'step': {'milestones': published, 'factor': 0.1}}
  with pytest.raises(ConfigError, match="did you mean 'step'"):
    schedules.options('stepp')


@pytest.mark.parametrize('share, epochs, first', [
    (50 / 300, 300, 50), (215 / 300, 300, 215), (0.0, 7, 0), (1 / 6, 3, 1),
    (1 / 3, 30, 10), (1.0, 4, 4)])
def test_first_epoch(share, epochs, first):
  assert schedules.first_epoch(share, epochs) == first


@pytest.mark.parametrize('overrides, words', [
    ({'name': 'cosin'}, "did you mean 'cosine'"),
    ({'name': 'cosine', 'milestones': (0.5,)}, 'milestones'),
    ({'name': 'step', 'milestones': (100, 150)}, 'shares'),
    ({'name': 'step', 'factor': 0.0}, 'factor'),
    ({'name': 'ciard', 'start': 1.0}, 'start'),
    ({'warmup': 5}, 'warmup'),
    ({'learning_rate': 0.0}, 'learning_rate'),
    ({'learning_rate': float('nan')}, 'learning_rate'),
    ({'steps_per_epoch': 0}, 'batch_size'),
    ({'epochs': 0}, 'epochs')])
def test_schedule_errors(overrides, words):
  arguments = {'name': 'constant', 'learning_rate': 0.1, 'epochs': 5,
               'steps_per_epoch': 2, **overrides}
  with pytest.raises(ConfigError, match=words):
    schedules.make_schedule(arguments.pop('name'), **arguments)


TORCH = {
    'sgd': ({}, lambda torch, p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, weight_decay=0.02)),
    'nesterov': ({'nesterov': True}, lambda torch, p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, weight_decay=0.02, nesterov=True)),
    'plain': ({'momentum': 0.0}, lambda torch, p: torch.optim.SGD(
        p, lr=0.1, weight_decay=0.02)),
    'adam': ({'name': 'adam'}, lambda torch, p: torch.optim.Adam(
        p, lr=0.1, weight_decay=0.02)),
    'adamw': ({'name': 'adamw'}, lambda torch, p: torch.optim.AdamW(
        p, lr=0.1, weight_decay=0.02)),
}


@pytest.mark.parametrize('case', TORCH)
@pytest.mark.parametrize('clip', [0.0, 0.7])
def test_optimizer_does_as_torch(case, clip):
  torch = pytest.importorskip('torch')
  settings, make_torch = TORCH[case]
  rng = np.random.default_rng(1)
  start = np.float32(rng.normal(size=(2, 3)))
  gradients = np.float32(rng.normal(size=(5, 2, 3)))

  theirs = torch.nn.Parameter(torch.tensor(start))
  optimizer = make_torch(torch, [theirs])
  for gradient in gradients:
    theirs.grad = torch.tensor(gradient)
    if clip:
      torch.nn.utils.clip_grad_norm_([theirs], clip)
    optimizer.step()

  tx = schedules.make_optimizer(
      {'weight_decay': 0.02, 'clip_norm': clip, **settings},
      optax.constant_schedule(0.1))
  ours = {'w': jnp.asarray(start)}
  state = tx.init(ours)
  for gradient in gradients:
    updates, state = tx.update({'w': jnp.asarray(gradient)}, state, ours)
    ours = optax.apply_updates(ours, updates)
  np.testing.assert_allclose(
      ours['w'], theirs.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_optimizer_follows_the_schedule():
  tx = schedules.make_optimizer(
      {'momentum': 0.0, 'weight_decay': 0.0}, lambda count: 0.1 * (count + 1))
  params = jnp.zeros(())
  state = tx.init(params)
  for expected in (-0.1, -0.3, -0.6):
    updates, state = tx.update(jnp.ones(()), state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, expected, rtol=1e-6)


@pytest.mark.parametrize('settings, words', [
    ({'name': 'sdg'}, "did you mean 'sgd'"),
    ({'wieght_decay': 1e-4}, "did you mean 'weight_decay'"),
    ({'momentum': 1.0}, 'momentum'),
    ({'weight_decay': -1e-4}, 'weight_decay'),
    ({'clip_norm': -1}, 'clip_norm')])
def test_optimizer_errors(settings, words):
  with pytest.raises(ConfigError, match=words):
    schedules.make_optimizer(settings, optax.constant_schedule(0.1))
