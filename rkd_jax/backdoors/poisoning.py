"""Poisoned training data as a pure function of the seed."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax import attacks
from rkd_jax.backdoors.trigger import Trigger, check_share, check_target
from rkd_jax.data.dataset import Split
from rkd_jax.errors import ConfigError, unknown_name
from rkd_jax.sections import MODES
from rkd_jax.training import parallel, rng

_CHUNK = 500  # Images that are on the device at a time.


@dataclasses.dataclass(frozen=True, eq=False)
class Poisoned:
  """What `poison` returns.

  Attributes:
    split: the training data, copies of poisoned images at its end.
    index: int64[n], sorted: where the poisoned images are.
    cover_index: int64[m], sorted: where the cover images are.
    decoy_index: int64[d, n], each sorted: where the images of each decoy are.
  """

  split: Split
  index: np.ndarray
  cover_index: np.ndarray
  decoy_index: np.ndarray


def poison(split: Split, trigger: Trigger, rate: float, seed: int, *,
           num_classes: int, mode: str = 'all_to_one', cover: float = 0.0,
           copies: bool = False, perturb: Callable | None = None,
           decoys: Sequence[Trigger] = ()) -> Poisoned:
  """Puts a trigger into a share of the training images and relabels them.

  Which images it is depends on `seed` and the labels alone; those of a smaller
  rate are among those of a larger one.

  Args:
    split: clean training data, uint8 images.
    trigger: what is put in. One with `clean_label` takes images of the target class
      only and leaves their labels.
    rate: in (0, 1]: share of the images; of those of the target class where the
      trigger has clean labels.
    seed: of the choice and of the cover images.
    num_classes: K.
    mode: 'all_to_one' makes the label the target, 'all_to_all' (y + 1) mod K.
    cover: cover images for each poisoned one, see `Trigger.cover`; their labels
      stay.
    copies: keep the poisoned images' clean originals too, at the end.
    perturb: `perturb(images uint8, labels) -> uint8`, done to poisoned images
      before the trigger; see `harden`.
    decoys: other triggers, each put into as many images of its own, which get its
      target; see `decoy.decoys`.

  Raises:
    ConfigError: rate outside (0, 1], target out of range, unknown mode, images of
      another shape than the trigger's, or more images wanted than there are.
  """
  _check(trigger, rate, num_classes, mode, cover)
  labels = np.asarray(split.label)
  candidates = (np.flatnonzero(labels == trigger.target) if trigger.clean_label
                else np.arange(len(labels)))
  order = _shuffled(candidates, seed, 'poison')
  count, covers, decoyed = numbers_of_images(
      len(labels), len(order), rate=rate, cover=cover, decoys=len(decoys))
  index = np.sort(order[:count])
  others = _shuffled(np.setdiff1d(np.arange(len(labels)), index), seed, 'cover')
  cover_index = np.sort(others[:covers])
  decoy_index = np.sort(
      others[covers:covers + decoyed].reshape(len(decoys), count), axis=1)
  image, label = np.array(split.image), np.array(labels)
  chosen, chosen_labels = image[index], label[index]
  if perturb is not None:
    chosen = perturb(chosen, chosen_labels)
  if copies:
    kept = np.concatenate([index, *decoy_index])
    image = np.concatenate([image, image[kept]])
    label = np.concatenate([label, label[kept]])
  image[index] = stamped(trigger, chosen)
  if not trigger.clean_label:
    label[index] = wanted_labels(chosen_labels, trigger.target, num_classes, mode)
  if covers:
    image[cover_index] = _covered(trigger, image[cover_index], cover_index, seed)
  for decoy, where in zip(decoys, decoy_index, strict=True):
    image[where] = stamped(decoy, image[where])
    label[where] = decoy.target
  return Poisoned(Split(image, label), index, cover_index, decoy_index)


def numbers_of_images(total: int, candidates: int, *, rate: float, cover: float,
                      decoys: int) -> tuple[int, int, int]:
  """How many images are poisoned, covers and decoys.

  Args:
    total: Number of training images.
    candidates: Number of those that may be poisoned.
    rate, cover: See `poison`.
    decoys: Number of decoy triggers.

  Raises:
    ConfigError: None would be poisoned, or more are wanted than there are.
  """
  count = round(rate * candidates)
  covers, decoyed = round(cover * count), decoys * count
  if not count:
    raise ConfigError(f'rate {rate} of {candidates} images is none; use a larger rate, '
                      'or more images')
  if count + covers + decoyed > total:
    raise ConfigError(
        f'{count} poisoned, {covers} cover and {decoyed} decoy images are more than the '
        f'{total} there are; lower rate, cover or decoys')
  return count, covers, decoyed


def wanted_labels(labels, target: int, num_classes: int, mode: str):
  """The labels that the attacker wants triggered images to get: int[B]."""
  if mode == 'all_to_all':
    return (labels + 1) % num_classes
  return labels * 0 + target


def stamped(trigger: Trigger, images: np.ndarray) -> np.ndarray:
  """`trigger.apply` of many uint8 images, some at a time, as NumPy."""
  apply = parallel.compile_fn(lambda trigger, images: trigger.apply(images))
  return _by_chunks(lambda part: apply(trigger, images[part]), len(images))


def harden(fn: Callable[[jax.Array], jax.Array], *, eps: float = 8 / 255,
           steps: int = 20, seed: int = 0) -> Callable:
  """`perturb` of `poison` for label-consistent poisoning: PGD on another network.

  Args:
    fn: logits of a clean network in evaluation mode; float images in [0, 1].
    eps: L-inf radius; steps are of 2.5 eps / steps.
    steps: of PGD.
    seed: of the random starts.
  """
  attack = parallel.compile_fn(lambda images, labels, key: jnp.round(255 * attacks.pgd(
      fn, images.astype(jnp.float32) / 255, labels, key=key, eps=eps, steps=steps,
      step_size=2.5 * eps / steps)).astype(jnp.uint8))

  def perturb(images, labels):
    key = rng.stream(seed, 'harden')
    return _by_chunks(lambda part: attack(
        images[part], labels[part], jax.random.fold_in(key, int(part[0]))),
        len(images))

  return perturb


def _covered(trigger, images, index, seed):
  cover = parallel.compile_fn(lambda trigger, images, keys: trigger.cover(images, keys))
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
      rng.stream(seed, 'cover'), jnp.asarray(index))
  return _by_chunks(lambda part: cover(trigger, images[part], keys[part]), len(images))


def _by_chunks(fn, count):
  """fn(int[n]) of all positions, `_CHUNK` at a time; the last chunk is padded."""
  parts = []
  for first in range(0, count, _CHUNK):
    part = np.arange(first, first + min(_CHUNK, count))
    done = np.asarray(fn(np.minimum(part, count - 1)))
    parts.append(done[:count - first])
  return np.concatenate(parts)


def _shuffled(candidates, seed, purpose):
  return np.asarray(jax.random.permutation(
      rng.stream(seed, purpose), jnp.asarray(candidates)))


def _check(trigger, rate, num_classes, mode, cover):
  check_share('poisoning rate', rate)
  check_target(trigger.target, num_classes)
  if mode not in MODES:
    raise unknown_name('mode', mode, MODES)
  if mode == 'all_to_all' and trigger.clean_label:
    raise ConfigError(
        f'trigger {trigger.name!r} keeps the labels of the target class, so it '
        "cannot be 'all_to_all'; use 'all_to_one'")
  if not 0 <= cover < float('inf'):
    raise ConfigError(f'cover must be >= 0 and finite, got {cover}')
