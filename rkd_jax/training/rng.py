"""PRNG keys from (seed, step, global example index), never from a device."""

import jax


def stream(seed: int, name: str) -> jax.Array:
  """Typed key of one named purpose ('init', 'order', 'train', 'evaluate').

  Streams of one seed are independent of each other: adding a purpose does not
  move the numbers of the others.
  """
  tag = int.from_bytes(name.encode(), 'little') % (2**31 - 1)
  return jax.random.fold_in(jax.random.key(seed), tag)


def example_keys(key: jax.Array, step: jax.Array, index: jax.Array):
  """Keys [B] for the examples with global indices int32[B] at one step.

  A key depends on the run's key, the step and the example alone, so an example
  draws the same numbers on whatever device, and beside whatever others, it is.
  """
  step_key = jax.random.fold_in(key, step)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, index)
