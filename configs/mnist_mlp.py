"""Dense ReLU networks on MNIST, by plain training: what `verify` is measured on.

Command:  rkd train --config configs/mnist_mlp.py:x2 --workdir runs/mnist_x2
Cost:     1 to 2 minutes on two CPU cores.
Expected: 97 to 98% clean accuracy.

The shapes are those of the `mnistfc` benchmark of the verification competition
VNN-COMP 2021: 784 inputs, 2, 4 or 6 layers of 256 units, 10 classes.

Variants: x2, x4, x6 (layers of 256 units).
"""

import ml_collections

VARIANTS = ('x2', 'x4', 'x6')


def get_config(variant='x2'):
  """What differs from the defaults."""
  depth = int((variant or 'x2').removeprefix('x'))
  return ml_collections.ConfigDict({
      'method': 'standard',
      'model': 'mlp' + '_256' * depth,
      'data': {'name': 'mnist'},
      # Without the decay the networks are as robust, but hardly anything is provable.
      'optimizer': {'learning_rate': 0.05, 'weight_decay': 1e-3},
      'train': {'epochs': 5, 'checkpoint_every': 5},
      'validation': {'every': 5, 'examples': 1_000},
      'attack': {'eps': 0.03, 'step_size': 0.03 / 4},
      'evaluation': {'attacks': ('clean', 'pgd20'), 'batch_size': 500},
  })
