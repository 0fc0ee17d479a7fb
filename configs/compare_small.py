"""The family of adversarial distillation methods on small networks.

Command:  rkd compare --config configs/compare_small.py:mnist --workdir runs/mnist
          rkd compare --config configs/compare_small.py:fashion_mnist \\
              --workdir runs/fashion
          rkd compare --config configs/compare_small.py:mnist_family \\
              --workdir runs/mnist_family
          rkd compare --config configs/compare_small.py:fashion_mnist_family \\
              --workdir runs/fashion_family
          rkd compare --config configs/compare_small.py:cifar10 --workdir runs/c10
Cost:     36 and 46 minutes, each with one of two CPU cores to itself, about; of the
          family 45 and 30 minutes on one core, of CIFAR-10 an hour.
Expected: the tables in docs/results.md.

Three seeds. Every student has the same clean teacher (standard training) and
robust teacher (TRADES), both cnn_16_32; students are cnn_8_16, a quarter of the
arithmetic. Plain distillation (SD) learns from the clean teacher, ARD and RSLAD
from the robust one. All share one recipe; departures from the papers make such
short trainings work: learning rate and eps warm up (at eps 0.3 PGD-AT otherwise
never leaves the plateau of constant predictions; CIARD collapses without on
Fashion-MNIST), on Fashion-MNIST gradients are clipped, and KL terms are summed over
the ten classes instead of averaged (kl_scale 10). CIARD is trained whole and with
each of its parts off.

The family has all methods instead, and PGD-AT, RSLAD and CIARD with averaged weights or
under adversarial weight perturbation. AdaAD's attack goes through the teacher too and
costs three times as much. Consistency regularisation compares two augmentations: on
Fashion-MNIST its images are cropped at random, and "PGD-AT, crops" is its base; on
MNIST it does not leave the plateau then and compares two attacks on the same image.

Variants:
  mnist          eps 0.3, 10,000 training images, 12 epochs
  fashion_mnist  eps 0.1, 6,000 training images, 10 epochs
  mnist_family, fashion_mnist_family
                 the same data, all methods
  cifar10        eps 8/255, 10,000 training images, 10 epochs of Adam (by SGD these
                 networks never leave the plateau), ten of the methods: a look at other
                 images, far from what configs/compare_cifar10.py is for
  mnist_full, fashion_mnist_full
                 all images, 60 epochs: for accelerators
  smoke, smoke_family
                 one seed, few images of MNIST, without the rows for CIARD's parts:
                 does it run?
"""

import ml_collections

VARIANTS = ('mnist', 'fashion_mnist', 'mnist_full', 'fashion_mnist_full', 'mnist_family',
            'fashion_mnist_family', 'cifar10', 'smoke', 'smoke_family')

DATA = {
    'mnist': {'attack': {'eps': 0.3, 'step_size': 0.3 / 4, 'eps_warmup': 0.5},
              'optimizer': {'learning_rate': 0.05},
              'data': {'train_examples': 10_000},
              'train': {'epochs': 12, 'checkpoint_every': 6}},
    'fashion_mnist': {
        'attack': {'eps': 0.1, 'step_size': 0.1 / 4, 'eps_warmup': 0.5},
        'optimizer': {'learning_rate': 0.05, 'clip_norm': 1.0},
        'train': {'epochs': 10, 'checkpoint_every': 5}},
    'cifar10': {
        'attack': {'eps': 8 / 255, 'step_size': 2 / 255, 'eps_warmup': 0.5},
        'optimizer': {'name': 'adam', 'learning_rate': 2e-3, 'weight_decay': 0.0},
        'data': {'train_examples': 10_000},
        'train': {'epochs': 10, 'checkpoint_every': 5}},
}

# What a data set changes in the students.
_ROWS = {
    'rates': True,  # SD's and ARD's own. Adam does not mind the scale of a loss.
    'late': {},  # Where the plateau holds one seed in three without soft labels.
    'average': {},  # SWA's must begin after eps has grown to its end.
    'crops': {},  # For consistency's two augmentations.
    'family': (),  # Names of all that the family has; (): all.
}
ROWS = {
    'mnist': {**_ROWS, 'late': {'attack': {'eps_warmup': 0.8}},
              'average': {'start': 0.8}},
    'fashion_mnist': {**_ROWS, 'crops': {'data': {'augmentation': 'crop'}}},
    'cifar10': {**_ROWS, 'rates': False, 'family': (
        'SD', 'PGD-AT', 'ARD', 'RSLAD', 'MTARD', 'B-MTARD', 'CIARD', 'TRADES',
        'PGD-AT + EMA', 'CIARD + EMA')},
}


def get_config(variant=''):
  """What differs from the defaults."""
  full, smoke = variant.endswith('_full'), variant.startswith('smoke')
  name = variant.removesuffix('_full').removesuffix('_family')
  name = 'mnist' if smoke or not name else name
  rows = ROWS[name]
  config = ml_collections.ConfigDict({
      'model': 'cnn_8_16',
      'data': {'name': name, 'train_examples': 6_000, 'test_examples': 1_000},
      'schedule': {'warmup': 0.1},
      'validation': {'every': 2, 'examples': 500},
      'evaluation': {'batch_size': 250},
      'teachers': {
          'clean': {'overrides': {
              'method': 'standard', 'model': 'cnn_16_32',
              'train': {'epochs': 8}}},
          'robust': {'overrides': {
              'method': 'trades', 'model': 'cnn_16_32'}},
      },
      'compare': {
          'seeds': (0, 1, 2),
          'students': (family(rows) if variant.endswith('_family') or rows['family']
                       else students(rows, parts=not smoke))},
  })
  config.update(DATA[name])
  if full:
    config.data.update({'train_examples': 0, 'test_examples': 0})
    config.train.epochs = 60
    config.teachers.clean.overrides.train.epochs = 30
  if smoke:
    config.data.update({'train_examples': 512, 'test_examples': 64})
    config.attack.steps = 2
    config.train.epochs = 2
    config.validation = {'every': 2, 'examples': 64}
    config.evaluation = {'attacks': ('clean', 'pgd20'), 'batch_size': 64}
    config.compare.seeds = (0,)
  return config


KL = {'kl_scale': 10.0}  # KL summed over the classes: see the docstring.


def students(rows, parts):
  """((name in the table, what to change), ...)."""
  ciard = {'method': 'ciard', 'schedule': {'name': 'ciard'}}
  rate = lambda value: {'optimizer': {'learning_rate': value}} if rows['rates'] else {}
  methods = (
      ('SD', {'method': 'sd', 'single_teacher': 'clean', **rate(0.02)}),
      ('PGD-AT', {'method': 'pgd_at', **rows['late']}),
      # Its loss has no scale; ten times the learning rate does the same.
      ('ARD', {'method': 'ard', **rate(0.5)}),
      ('RSLAD', {'method': 'rslad', 'rslad': KL}),
      ('MTARD', {'method': 'mtard', 'mtard': KL}),
      ('B-MTARD', {'method': 'b_mtard', 'b_mtard': KL}),
      ('CIARD', {**ciard, 'ciard': KL}),
  )
  if not parts:
    return methods
  return methods + (
      ('CIARD, no push', {**ciard, 'ciard': {**KL, 'push': False}}),
      ('CIARD, no retraining', {**ciard, 'ciard': {**KL, 'retrain': False}}),
      ('CIARD, no temperatures', {
          **ciard, 'ciard': {**KL, 'temperatures': False}}),
  )


def family(rows):
  """The rows of all methods, without CIARD's parts."""
  known = dict(students(rows, parts=False))
  pgd_at, late, crops = known['PGD-AT'], rows['late'], rows['crops']
  ema = {'averaging': {'name': 'ema', 'decay': 0.99}}
  swa = {'averaging': {'name': 'swa', **rows['average']}}
  awp = {'awp': {'gamma': 0.01, 'start': 0.25}}
  every = (
      *known.items(),
      ('TRADES', {'method': 'trades'}),
      *([('PGD-AT, crops', {**pgd_at, **crops})] if crops else []),
      ('Consistency', {**pgd_at, **crops, 'method': 'consistency'}),
      ('KDIGA', {'method': 'kdiga'}),
      ('KDIGA, gamma 10', {'method': 'kdiga', 'kdiga': {'gamma': 10.0}}),
      ('IAD', {'method': 'iad', **late}),
      ('AdaAD', {'method': 'adaad', 'adaad': KL, **late}),
      ('AdaIAD', {'method': 'adaiad', **late}),
      ('DGAD', {'method': 'dgad', **late}),
      ('PGD-AT + EMA', {**pgd_at, **ema}),
      ('PGD-AT + SWA', {**pgd_at, **swa}),
      ('PGD-AT + AWP', {**pgd_at, **awp}),
      ('PGD-AT + EMA + AWP', {**pgd_at, **ema, **awp}),
      ('RSLAD + EMA + AWP', {**known['RSLAD'], **ema, **awp}),
      ('CIARD + EMA', {**known['CIARD'], **ema}),
      ('CIARD + EMA + AWP', {**known['CIARD'], **ema, **awp}),
  )
  return tuple(row for row in every if not rows['family'] or row[0] in rows['family'])
