"""FT-SAM: fine-tuning towards flat minima (Zhu et al. 2023, arXiv:2304.11823)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from rkd_jax.detox import finetune
from rkd_jax.detox.descent import repeat
from rkd_jax.detox.finetune import optimiser
from rkd_jax.settings import not_negative, share

SUMMARY = 'FT-SAM: fine-tuning against the worst weights nearby'


@dataclasses.dataclass(frozen=True)
class Settings(finetune.Settings):
  """Settings of `ft_sam`."""

  rho: float = not_negative(2.0, 'Radius of the neighbourhood, relative to |w|.')
  smoothing: float = share(0.1, 'Label smoothing.')


def run(network, variables, split, settings: Settings, *, key):
  """SGD on the loss at w + rho |w|^2 g / || |w| g ||, g the gradient at w.

  Args:
    network, variables: the teacher.
    split: clean images and labels.
    settings: Those declared above.
    key: of the batches.

  Returns:
    (network, variables).
  """
  tx = optimiser(settings)
  rest = {name: tree for name, tree in variables.items() if name != 'params'}

  def loss_fn(params, rest, image, label):
    logits, after = network.train({**rest, 'params': params}, image)
    wanted = optax.smooth_labels(
        jax.nn.one_hot(label, logits.shape[-1]), settings.smoothing)
    loss = jnp.mean(optax.softmax_cross_entropy(logits, wanted))
    return loss, {name: after[name] for name in rest}

  def step(state, image, label, key):
    del key
    params, rest, optimizer = state
    grads, _ = jax.grad(loss_fn, has_aux=True)(params, rest, image, label)
    there = worst_nearby(params, grads, settings.rho)
    grads, rest = jax.grad(loss_fn, has_aux=True)(there, rest, image, label)
    updates, optimizer = tx.update(grads, optimizer, params)
    return optax.apply_updates(params, updates), rest, optimizer

  params, rest, _ = repeat(
      step, (variables['params'], rest, tx.init(variables['params'])), split, key=key,
      steps=settings.steps, batch_size=settings.batch_size)
  return network, {**rest, 'params': params}


def worst_nearby(params, grads, rho: float):
  """w + rho T^2 g / ||T g|| with T = |w|, over all parameters (their eq. 3)."""
  scaled = jax.tree.map(lambda w, g: jnp.abs(w) * g, params, grads)
  length = optax.tree.norm(scaled) + 1e-12
  return jax.tree.map(
      lambda w, s: w + rho * jnp.abs(w) * s / length, params, scaled)
