"""A new classifier for a teacher, trained against universal perturbations.

What the poisoned classifier reads as the attacker's class is forgotten with it; what is
drawn anew learns from clean images, and from images under the worst trigger-like
perturbation of each class, what a trigger must not be read as. The features stay.
"""

from rkd_jax.detox import head, universal_training

SUMMARY = 'a new classifier against universal perturbations, one a class'

Settings = universal_training.Settings


def run(network, variables, split, settings: Settings, *, key):
  """The teacher with a classifier that minimises `universal_training.train`'s loss.

  Args:
    network, variables: the teacher; its other weights do not change.
    split: clean images and labels.
    settings: Those declared above.
    key: of the classifier, batches and perturbations.

  Returns:
    (network, variables).
  """
  build = lambda free: (network, head.replaced(variables, free))
  return build(universal_training.train(
      build, head.of(head.drawn_anew(variables['params'], key)), split, settings,
      key=key))
