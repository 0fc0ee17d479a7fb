"""I-BAU: unlearning by implicit hypergradients (Zeng et al. 2022, arXiv:2110.03735)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax import lax

from rkd_jax import losses
from rkd_jax.detox.descent import repeat
from rkd_jax.settings import count, positive

SUMMARY = 'I-BAU: unlearns the worst universal perturbation, implicit gradients'


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `i_bau`."""

  rounds: int = count(5, 'How often a perturbation is searched and unlearnt.')
  steps: int = count(40, 'Updates of the weights in a round.', least=0)
  learning_rate: float = positive(1e-3, 'Learning rate of Adam.')
  inner_steps: int = count(20, 'Steps of the search for the perturbation.', least=0)
  radius: float = positive(3.0, 'L2 radius of the perturbation; pixels in [0, 1].')
  inner_rate: float = positive(0.3, 'L2 length of a step of the search.')
  fixed_point_steps: int = count(
      5, 'Terms of the series of the hypergradient; 0: the direct gradient.', least=0)
  batch_size: int = count(64, 'Images in a batch.')


def run(network, variables, split, settings: Settings, *, key):
  """min over w of max over one d, ||d||_2 <= radius, of CE(T(x + d), y).

  In every round d is searched for by `inner_steps` of normalised ascent from 0 and
  then the weights are updated `steps` times by Adam with the hypergradient, in which
  d is taken to follow the weights (see `hypergradient`).

  Args:
    network, variables: the teacher, in evaluation mode throughout.
    split: clean images and labels.
    settings: Those declared above.
    key: of the batches.

  Returns:
    (network, variables).
  """
  rest = {name: tree for name, tree in variables.items() if name != 'params'}
  tx = optax.adam(settings.learning_rate)
  shape = split.image.shape[1:]

  def loss(params, delta, image, label):
    logits = network.predict({**rest, 'params': params}, image + delta)
    return jnp.mean(losses.cross_entropy(logits, label))

  def inner(state, image, label, key):
    del key
    params, delta = state
    return params, moved(lambda d: loss(params, d, image, label), delta, settings)

  def outer(state, image, label, key):
    del key
    params, delta, optimizer = state
    grads = hypergradient(
        lambda w, d: loss(w, d, image, label),
        lambda w, d: moved(lambda e: loss(w, e, image, label), d, settings),
        params, delta, settings.fixed_point_steps)
    updates, optimizer = tx.update(grads, optimizer, params)
    return optax.apply_updates(params, updates), delta, optimizer

  params = variables['params']
  optimizer = tx.init(params)
  for number in range(settings.rounds):
    keys = jax.random.split(jax.random.fold_in(key, number))
    size = {'batch_size': settings.batch_size}
    delta = repeat(inner, (params, jnp.zeros(shape)), split,
                   steps=settings.inner_steps, key=keys[0], **size)[1]
    params, _, optimizer = repeat(outer, (params, delta, optimizer), split,
                                  steps=settings.steps, key=keys[1], **size)
  return network, {**rest, 'params': params}


def moved(loss, delta, settings):
  """One step of ascent, of length `inner_rate`, projected to the radius."""
  grad = jax.grad(loss)(delta)
  delta = delta + settings.inner_rate * grad / (_norm(grad) + 1e-12)
  return delta * jnp.minimum(1, settings.radius / (_norm(delta) + 1e-12))


def hypergradient(loss, follow, params, delta, steps: int):
  """d/dw loss(w, d(w)) where d(w) is a fixed point d = follow(w, d).

  The derivative of d is a truncated Neumann series: v <- v follow_d + loss_d,
  `steps` times, then loss_w + v follow_w.

  Args:
    loss: (params, delta) -> scalar.
    follow: (params, delta) -> delta.
    params, delta: where it is taken.
    steps: terms of the series; 0 leaves the direct gradient.
  """
  direct, towards = jax.grad(loss, argnums=(0, 1))(params, delta)
  if not steps:
    return direct
  _, pull = jax.vjp(follow, params, delta)
  series = lax.fori_loop(
      0, steps - 1, lambda _, v: pull(v)[1] + towards, towards)
  return jax.tree.map(jnp.add, direct, pull(series)[0])


def _norm(x):
  return jnp.sqrt(jnp.sum(jnp.square(x)) + 1e-24)
