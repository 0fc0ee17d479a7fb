"""Gates on the deviation from clean averages, against a worst-case trigger.

A static mask scales what the head reads and leaves a trigger's direction in place.
Here every channel's deviation from its clean average is scaled by a gate of its own,
and the head is trained anew with the gates, both against universal perturbations
(one a class) that try to make the network say their class: what carries them is shut.
"""

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from rkd_jax import losses
from rkd_jax.detox import layers as layers_lib
from rkd_jax.detox import universal
from rkd_jax.detox.descent import repeat
from rkd_jax.errors import ConfigError
from rkd_jax.models import masked

SUMMARY = 'channel gates and a new head against universal perturbations'

DEFAULTS = {
    'eps': 0.1, 'attack_steps': 2, 'restart_every': 50, 'weight': 1.0,
    'penalty': 0.01, 'layers': '', 'head': True, 'weights': False, 'steps': 600,
    'learning_rate': 5e-3, 'batch_size': 64}
_HEAD = ('head',)
_OPEN = 3.0  # Gates start at sigmoid(3) = 0.95.


def run(network, variables, split, settings, *, key):
  """A teacher with gates g in [0, 1]^C: F' = P + g (F - P) at each layer.

  Minimises CE(x) + weight * CE(x + d_k, y) + penalty * mean(g), where d_k is a
  universal perturbation for a wrong class k, kept within eps in L-inf and improved
  by `attack_steps` signed steps on every batch.

  Args:
    network, variables: the teacher.
    split: clean images and labels.
    settings:
      eps: radius in pixel units.
      attack_steps: steps of the perturbations, of eps / 5, in every update.
      restart_every: updates after which the perturbations start anew.
      weight: of the loss on perturbed images.
      penalty: on open gates, >= 0.
      layers: 'stage1,features'; '' for every stage and the penultimate vector.
      head: whether the classifier is drawn anew and trained with the gates.
      weights: whether all weights of the teacher are trained too.
      steps, learning_rate, batch_size: of Adam.
    key: of batches, perturbations and the new head.

  Returns:
    (network, variables), see `models.masked`.

  Raises:
    ConfigError: a setting out of its range, or a layer that is not tapped.
  """
  for name in ('eps', 'weight', 'penalty'):
    if not settings[name] >= 0:
      raise ConfigError(f'{name} must be >= 0, got {settings[name]}')
  names = layers_lib.named(network, settings['layers'])
  if not settings['layers']:
    names = (*names, 'features')
  clean = layers_lib.average(network, variables, split.image)
  params = _with_new_head(variables['params'], key) if settings['head'] else (
      variables['params'])
  trained = _paths(params, settings)
  state = {
      'gates': {name: jnp.full(clean[name].shape[-1], _OPEN) for name in names},
      'weights': {path: leaf for path, leaf in _flat(params).items() if path in trained}}

  def build(free):
    full = traverse_util.unflatten_dict({**_flat(params), **free['weights']})
    return masked.wrap(network, {**variables, 'params': full}, {
        name: {'mask': 1 - jax.nn.sigmoid(free['gates'][name]),
               'reference': clean[name]} for name in names})

  free = _optimise(build, state, split, settings, key)
  return build(free)


def _optimise(build, free, split, settings, key):
  tx = optax.adam(settings['learning_rate'])
  num_classes = _num_classes(build, free, split)
  shape, eps = split.image.shape[1:], settings['eps']

  def fn_of(free):
    network, variables = build(free)
    return lambda x: network.predict(variables, x)

  def loss_fn(free, image, label, bad):
    logits = fn_of(free)(jnp.concatenate([image, bad]))
    clean, attacked = jnp.split(losses.cross_entropy(
        logits, jnp.concatenate([label, label])), 2)
    is_open = sum(jnp.mean(jax.nn.sigmoid(g)) for g in free['gates'].values())
    return jnp.mean(clean + settings['weight'] * attacked) + (
        settings['penalty'] * is_open)

  def step(state, image, label, key):
    free, optimizer, deltas, count = state
    fresh = universal.start(num_classes, shape, eps, jax.random.fold_in(key, 0))
    deltas = jnp.where(count % settings['restart_every'] == 0, fresh, deltas)
    classes = universal.assign(label, num_classes, jax.random.fold_in(key, 1))
    for _ in range(settings['attack_steps']):
      deltas = universal.ascend(
          fn_of(free), image, classes, deltas, eps=eps, step_size=eps / 5)
    grads = jax.grad(loss_fn)(
        free, image, label, universal.perturb(image, deltas, classes))
    updates, optimizer = tx.update(grads, optimizer, free)
    return optax.apply_updates(free, updates), optimizer, deltas, count + 1

  deltas = universal.start(num_classes, shape, eps, key)
  return repeat(step, (free, tx.init(free), deltas, jnp.int32(0)), split, key=key,
                steps=settings['steps'], batch_size=settings['batch_size'])[0]


def _flat(params):
  return traverse_util.flatten_dict(params)


def _paths(params, settings):
  """Paths of the weights that are trained."""
  if settings['weights']:
    return set(_flat(params))
  return {path for path in _flat(params) if settings['head'] and path[-2:-1] == _HEAD}


def _with_new_head(params, key):
  """The classifier with kernels N(0, 1 / D) and zero biases."""
  flat = _flat(params)
  for path, leaf in flat.items():
    if path[-2:-1] == _HEAD:
      flat[path] = (jax.random.normal(key, leaf.shape) * leaf.shape[0]**-0.5
                    if leaf.ndim == 2 else jnp.zeros_like(leaf))
  return traverse_util.unflatten_dict(flat)


def _num_classes(build, free, split):
  network, variables = build(free)
  image = jnp.zeros((1, *split.image.shape[1:]))
  return jax.eval_shape(network.predict, variables, image).shape[-1]
