"""What an ascent remembers: its best point and the first that broke the label."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rkd_jax.attacks.probe import Outcome, Seen, choose


class Record(NamedTuple):
  """The best point so far, with its value and gradient, and the first broken one."""

  best: jax.Array
  value: jax.Array
  gradient: jax.Array
  adversarial: jax.Array
  broken: jax.Array
  passes: jax.Array
  finite: jax.Array


def new(point, seen: Seen) -> Record:
  """After one evaluation."""
  return Record(point, seen.value, seen.gradient, point, seen.wrong,
                jnp.ones(len(point), jnp.int32), seen.finite)


def note(record: Record, point, seen: Seen) -> Record:
  """After another evaluation."""
  best, value, gradient = choose(
      seen.value > record.value, (point, seen.value, seen.gradient),
      (record.best, record.value, record.gradient))
  fresh = seen.wrong & ~record.broken
  return Record(best, value, gradient,
                choose(fresh, point, record.adversarial), record.broken | fresh,
                record.passes + ~record.broken, record.finite & seen.finite)


def finish(record: Record, until_broken: bool, draws: int):
  """(outcome, objective): the broken image, else the best."""
  images = record.best
  if until_broken:
    images = choose(record.broken, record.adversarial, record.best)
  passes = record.passes * draws
  return Outcome(images, record.broken, passes, passes, record.finite), record.value
