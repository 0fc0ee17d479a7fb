"""Faithful students: do they say what the robust teacher says, provably?

Command:  rkd compare --config configs/faithful_small.py:mnist_mlp --workdir runs/fd_mnist
          rkd certify --workdir runs/fd_mnist --eps 0.05,0.1 --examples 200
Cost:     see docs/faithfulness.md.
Expected: the tables in docs/faithfulness.md.

Three seeds. The teacher is robust (PGD-AT); the students have half its width, learn
from it alone and share one recipe, but for CFD's optimiser. FD and CFD see no label. The
weight decay is large: without it bounds say little about either network.

Variants, DATA_NETWORK: mnist_mlp, mnist_cnn, fashion_mnist_mlp, fashion_mnist_cnn
(eps 0.1) and cifar10_cnn (eps 2/255); mlp is 784-256-256-10, students 128-128, cnn is
cnn_16_32, students cnn_8_16. Teachers trained by interval bounds: mnist_mlp_certified,
mnist_cnn_certified, fashion_mnist_mlp_certified, fashion_mnist_cnn_certified,
cifar10_cnn_certified. One that is not robust: mnist_mlp_standard. FD at other
temperatures and learning rates: mnist_mlp_sweep. A pair small enough for an exact program
(digits, 16 and 8 hidden units, eps 0.1): digits_tiny. Does it run? smoke
"""

import ml_collections

DATA = {'mnist': 0.1, 'fashion_mnist': 0.1, 'cifar10': 2 / 255, 'digits': 0.1}
NETWORKS = {'mlp': ('mlp_256_256', 'mlp_128_128'), 'cnn': ('cnn_16_32', 'cnn_8_16'),
            'tiny': ('mlp_16', 'mlp_8')}
_PAIRS = ('mnist_mlp', 'mnist_cnn', 'fashion_mnist_mlp', 'fashion_mnist_cnn',
          'cifar10_cnn', 'digits_tiny')
VARIANTS = (*_PAIRS, *(f'{pair}_certified' for pair in _PAIRS[:-1]), 'mnist_mlp_standard',
            'mnist_mlp_sweep', 'smoke')
# What training on interval bounds wants; the epochs are those of the others.
INTERVALS = {
    'optimizer': {'name': 'adam', 'learning_rate': 2e-3, 'weight_decay': 0.0,
                  'clip_norm': 10.0},
    'schedule': {'name': 'step', 'milestones': (0.75, 0.9), 'factor': 0.2,
                 'warmup': 0.0}}
TEACHERS = {
    '': {'method': 'pgd_at'},
    'standard': {'method': 'standard'},
    'certified': {
        'method': 'certified', 'train': {'epochs': 20},
        'certified': {'kappa_start': 0.0, 'init': 'network'},
        **INTERVALS,
        'validation': {'attack': 'certified_ibp'}}}


def get_config(variant=''):
  """What differs from the defaults."""
  smoke = variant == 'smoke'
  if smoke or not variant:
    variant = 'mnist_mlp'
  variant, suffix = split(variant)
  data, network = variant.rsplit('_', 1)
  teacher, student = NETWORKS[network]
  config = ml_collections.ConfigDict({
      'model': student,
      'data': {'name': data, 'train_examples': 20_000, 'test_examples': 2_000},
      'attack': {'eps': DATA[data], 'step_size': DATA[data] / 4, 'eps_warmup': 0.5},
      'optimizer': {'learning_rate': 0.05, 'clip_norm': 1.0,
                    'weight_decay': 3e-3 if data == 'mnist' else 1e-3},
      'schedule': {'warmup': 0.1},
      'train': {'epochs': 10, 'checkpoint_every': 5},
      'validation': {'every': 5, 'examples': 500},
      'evaluation': {'attacks': ('clean', 'pgd20'), 'batch_size': 500},
      'teachers': {'robust': {'overrides': {
          'model': teacher, **TEACHERS['' if suffix == 'sweep' else suffix]}}},
      'compare': {'seeds': (0, 1, 2),
                  'students': SWEEP if suffix == 'sweep' else STUDENTS},
  })
  if data == 'digits':  # All of its 1,797 images.
    config.data.update({'train_examples': 0, 'test_examples': 0})
    config.train = {'epochs': 60, 'checkpoint_every': 30}
    config.validation = {'every': 30}
  if smoke:
    config.data.update({'train_examples': 512, 'test_examples': 64})
    config.attack.steps = 2
    config.train.epochs = 2
    config.validation = {'every': 2, 'examples': 64}
    config.compare.seeds = (0,)
  return config


def split(variant):
  """(DATA_NETWORK, what follows it)."""
  for suffix in ('certified', 'standard', 'sweep'):
    if variant.endswith('_' + suffix):
      return variant.removesuffix('_' + suffix), suffix
  return variant, ''


STUDENTS = (
    ('SD', {'method': 'sd'}),
    # Its loss has no scale; ten times the learning rate does the same.
    ('ARD', {'method': 'ard', 'optimizer': {'learning_rate': 0.5}}),
    ('RSLAD', {'method': 'rslad', 'rslad': {'kl_scale': 10.0}}),
    ('FD', {'method': 'fd'}),
    ('CFD', {'method': 'cfd', **INTERVALS}),
)
SWEEP = tuple(
    (f'FD, T = {t}, rate {rate}', {
        'method': 'fd', 'fd': {'temperature': float(t)},
        'optimizer': {'learning_rate': rate}})
    for t in (1, 2, 4) for rate in (0.02, 0.05, 0.2))
