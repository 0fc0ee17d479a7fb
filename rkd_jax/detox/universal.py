"""Universal perturbations, one for each class: the trigger that a defender imagines."""

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax import losses
from rkd_jax.data.batches import to_float
from rkd_jax.data.dataset import Split
from rkd_jax.detox.descent import repeat
from rkd_jax.training import parallel


def start(num_classes: int, image_shape, eps: float, key: jax.Array) -> jax.Array:
  """Random perturbations float32[K, H, W, C] in [-eps, eps]."""
  return jax.random.uniform(
      key, (num_classes, *image_shape), minval=-eps, maxval=eps)


def assign(labels: jax.Array, num_classes: int, key: jax.Array) -> jax.Array:
  """A class for each example, drawn from those that are not its own: int[B]."""
  shift = jax.random.randint(key, labels.shape, 1, num_classes)
  return (labels + shift) % num_classes


def perturb(images: jax.Array, deltas: jax.Array, classes: jax.Array) -> jax.Array:
  """clip(x + delta[class], 0, 1) of each example."""
  return jnp.clip(images + deltas[classes], 0, 1)


def ascend(fn, images, classes, deltas, *, eps: float, step_size: float) -> jax.Array:
  """Perturbations after one signed step towards their classes, within eps.

  Args:
    fn: float images -> logits.
    images: float32[B, H, W, C].
    classes: int[B], which perturbation each image carries.
    deltas: float32[K, H, W, C].
    eps, step_size: in pixel units.
  """
  def towards(deltas):
    logits = fn(perturb(images, deltas, classes))
    return jnp.mean(losses.cross_entropy(logits, classes))

  moved = deltas - step_size * jnp.sign(jax.grad(towards)(deltas))
  return jnp.clip(moved, -eps, eps)


def chase(fn, images, classes, deltas, count, key, settings) -> jax.Array:
  """The perturbations after the ascent of one update of the weights, which they follow.

  Args:
    fn, images, classes, deltas: as in `ascend`.
    count: the number of the update; every `restart_every` of them all start anew.
    key: of such a start.
    settings: `eps`, `attack_steps` (of eps / 5) and `restart_every`.
  """
  eps = settings.eps
  fresh = start(len(deltas), deltas.shape[1:], eps, key)
  deltas = jnp.where(count % settings.restart_every == 0, fresh, deltas)
  for _ in range(settings.attack_steps):
    deltas = ascend(fn, images, classes, deltas, eps=eps, step_size=eps / 5)
  return deltas


def reach(fn, split: Split, num_classes: int, *, eps: float, steps: int = 150,
          batch_size: int = 128, key: jax.Array) -> np.ndarray:
  """How near each class is: mean log p_k(x + d_k) over images x of other classes.

  Args:
    fn: float images -> logits.
    split: clean images (uint8) and labels; the first 500 are judged.
    num_classes: K.
    eps: radius in pixel units.
    steps, batch_size: signed steps of eps / 10, each for all d_k at once.
    key: of the starts, batches and classes.

  Returns:
    float[K], in nats; 0 where every image is of the class.
  """
  def step(deltas, image, label, key):
    classes = assign(label, num_classes, key)
    return ascend(fn, image, classes, deltas, eps=eps, step_size=eps / 10)

  deltas = repeat(step, start(num_classes, split.image.shape[1:], eps, key), split,
                  key=key, steps=steps, batch_size=batch_size)
  image, label = to_float(split.image[:500]), jnp.asarray(split.label[:500])

  @parallel.compile_fn
  def judge(deltas, image, label):
    def one(k):
      log_p = jax.nn.log_softmax(fn(perturb(image, deltas, k)))[:, k]
      return jnp.sum(log_p * (label != k)) / jnp.maximum(jnp.sum(label != k), 1)
    return jax.lax.map(one, jnp.arange(num_classes))

  return np.asarray(judge(deltas, image, label))
