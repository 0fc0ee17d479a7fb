"""The family of adversarial distillation methods on CIFAR-10, published sizes.

Command:  rkd compare --config configs/compare_cifar10.py --workdir runs/cifar10
Cost:     for accelerators: seven ResNet-18 students of 200 or 300 epochs and two
          teachers a seed. Not run in full here.
Expected: orders of the papers (clean / PGD-20): PGD-AT 83 / 51, RSLAD 83 / 54,
          B-MTARD 88.2 / 51.7, CIARD 88.9 / 51.7; single seeds, other teachers.

Every student has the same teachers, ResNet-56 (clean) and WRN-34-10 (TRADES), and
its own paper's learning-rate schedule.

Variants:
  ''            ResNet-18 students
  mobilenet_v2  MobileNetV2 students
  short         RSLAD and CIARD beside their teachers, all ResNet-18: 20 epochs of
                7 attack steps, bfloat16, one seed; ten minutes on an H100
                (clean / PGD-20: 79.7 / 48.5 the robust teacher, 78.8 / 48.6 RSLAD,
                85.4 / 40.1 CIARD; docs/results.md)
  smoke         tiny networks and few images for one epoch: does it run?
"""

import ml_collections

VARIANTS = ('', 'mobilenet_v2', 'short', 'smoke')


def get_config(variant=''):
  """What differs from the defaults."""
  halves = {'schedule': {'milestones': (0.5, 0.75)}, 'train': {'epochs': 200}}
  if variant == 'smoke':
    halves = {}
  config = ml_collections.ConfigDict({
      'model': 'mobilenet_v2' if variant == 'mobilenet_v2' else 'resnet18',
      'data': {'name': 'cifar10', 'augmentation': 'crop_flip'},
      'attack': {'eps': 8 / 255, 'step_size': 2 / 255, 'steps': 10},
      'schedule': {'name': 'step'},
      'train': {'epochs': 300, 'checkpoint_every': 5},
      'validation': {'every': 5},
      'teachers': {
          'clean': {'overrides': _teacher('resnet56', 'standard', 200)},
          'robust': {'overrides': _teacher('wide_resnet34_10', 'trades', 100)},
      },
      'compare': {'seeds': (0, 1, 2), 'students': _students(halves)},
  })
  if variant == 'short':
    _shorten(config)
  if variant == 'smoke':
    config.model = 'resnet8'
    config.data.update({'train_examples': 16, 'test_examples': 8})
    config.attack.steps = 1
    config.train.update({'epochs': 1, 'batch_size': 8})
    config.validation = {'every': 1, 'examples': 8, 'attack': 'fgsm'}
    config.evaluation = {'attacks': ('clean', 'fgsm'), 'batch_size': 8}
    config.compare.seeds = (0,)
    for name, model in (('clean', 'resnet8'), ('robust', 'wide_resnet10_1')):
      config.teachers[name].overrides.model = model
      config.teachers[name].overrides.train.epochs = 1
  return config


def _shorten(config):
  """Everything in 20 epochs, by the large rates and warm-ups of fast training."""
  config.dtype = 'bfloat16'
  config.attack.update({'steps': 7, 'eps_warmup': 0.2})
  config.optimizer = {'learning_rate': 0.3, 'nesterov': True, 'weight_decay': 5e-4}
  config.schedule = {'name': 'cosine', 'warmup': 0.15}
  config.averaging = {'name': 'ema'}
  config.train.update({'epochs': 20, 'batch_size': 256, 'checkpoint_every': 20})
  config.validation = {'every': 10}
  config.evaluation = {'attacks': ('clean', 'fgsm', 'pgd20', 'cw30'),
                       'batch_size': 1000}
  config.teachers.clean.overrides = {'method': 'standard'}
  config.teachers.robust.overrides = {'method': 'pgd_at'}
  # The published loss divides by the ten classes, which only a long training can
  # make up for.
  config.compare = {'seeds': (0,), 'students': (
      ('RSLAD', {'method': 'rslad', 'rslad': {'kl_scale': 10.0}}),
      ('CIARD', {'method': 'ciard', 'ciard': {'kl_scale': 10.0}}))}


def _teacher(model, method, epochs):
  return {'model': model, 'method': method,
          'schedule': {'milestones': (0.75, 0.9)},
          'optimizer': {'weight_decay': 5e-4},
          'train': {'epochs': epochs}}


def _students(halves):
  """((name in the table, what to change), ...); `halves` for the older papers."""
  return (
      ('SD', {'method': 'sd', 'single_teacher': 'clean', **halves,
              'optimizer': {'learning_rate': 0.02}}),
      ('PGD-AT', {'method': 'pgd_at', **halves}),
      ('ARD', {'method': 'ard', **halves}),
      ('RSLAD', {'method': 'rslad'}),
      ('MTARD', {'method': 'mtard'}),
      ('B-MTARD', {'method': 'b_mtard'}),
      ('CIARD', {'method': 'ciard', 'schedule': {'name': 'ciard'}}),
  )
