"""The family of adversarial distillation methods on MNIST, eps 0.3, three seeds.

Command:  rkd compare --config configs/compare_mnist.py --workdir runs/mnist
Cost:     see the table in docs/results.md (two CPU cores).
Expected: docs/results.md has the measured table.

Every student has the same clean teacher (standard training) and robust teacher
(TRADES), both cnn_16_32; students are cnn_8_16, a quarter of the arithmetic.
Plain distillation (SD) learns from the clean teacher, ARD and RSLAD from the
robust one. All share one recipe; two departures from the papers make such short
trainings work: the learning rate and eps warm up (PGD-AT otherwise never leaves the
plateau of constant predictions at this eps), and KL terms are summed over the ten classes instead of
averaged (kl_scale 10), which the papers' long trainings do not need.

Variants:
  ''     6,000 training images, 12 epochs, sized for two CPU cores
  full   all 60,000 images and more epochs, and CIARD with each of its parts off,
         for accelerators
  smoke  one seed, few images: does it run?
"""

import ml_collections

VARIANTS = ('', 'full', 'smoke')
EPS = 0.3


def get_config(variant=''):
  """What differs from the defaults."""
  config = ml_collections.ConfigDict({
      'model': 'cnn_8_16',
      'data': {'name': 'mnist', 'train_examples': 6_000,
               'test_examples': 1_000},
      'attack': {'eps': EPS, 'step_size': EPS / 4, 'steps': 10,
                 'eps_warmup': 0.8},
      'optimizer': {'learning_rate': 0.05},
      'schedule': {'warmup': 0.1},
      'train': {'epochs': 12, 'checkpoint_every': 6},
      'validation': {'every': 2, 'examples': 500},
      'evaluation': {'batch_size': 250},
      'teachers': {
          'clean': {'overrides': {
              'method': 'standard', 'model': 'cnn_16_32',
              'train': {'epochs': 8}}},
          'robust': {'overrides': {
              'method': 'trades', 'model': 'cnn_16_32'}},
      },
      'compare': {'seeds': (0, 1, 2), 'students': students(parts=variant == 'full')},
  })
  if variant == 'full':
    config.data.update({'train_examples': 0, 'test_examples': 0})
    config.train.epochs = 60
    config.teachers.clean.overrides.train.epochs = 30
  if variant == 'smoke':
    config.data.update({'train_examples': 512, 'test_examples': 64})
    config.train.epochs = 2
    config.validation = {'every': 2, 'examples': 64}
    config.attack.steps = 2
    config.evaluation = {'attacks': ('clean', 'pgd20'), 'batch_size': 64}
    config.compare.seeds = (0,)
  return config


def students(parts):
  """((name in the table, what to change), ...)."""
  kl = {'kl_scale': 10.0}  # KL summed over the classes: see the docstring.
  ciard = {'method': 'ciard', 'schedule': {'name': 'ciard'}}
  methods = (
      ('SD', {'method': 'sd', 'single_teacher': 'clean',
              'optimizer': {'learning_rate': 0.02}}),
      ('PGD-AT', {'method': 'pgd_at'}),
      # Its loss has no scale; ten times the learning rate does the same.
      ('ARD', {'method': 'ard', 'optimizer': {'learning_rate': 0.5}}),
      ('RSLAD', {'method': 'rslad', 'rslad': kl}),
      ('MTARD', {'method': 'mtard', 'mtard': kl}),
      ('B-MTARD', {'method': 'b_mtard', 'b_mtard': kl}),
      ('CIARD', {**ciard, 'ciard': kl}),
  )
  if not parts:
    return methods
  return methods + (
      ('CIARD, no push', {**ciard, 'ciard': {**kl, 'push': False}}),
      ('CIARD, no retraining', {**ciard, 'ciard': {**kl, 'retrain': False}}),
      ('CIARD, no temperatures', {
          **ciard, 'ciard': {**kl, 'temperatures': False}}),
  )
