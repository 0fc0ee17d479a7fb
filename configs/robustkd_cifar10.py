"""RobustKD at full size: CIFAR-10, WRN-28-4 to WRN-16-4, an accelerator's work.

Command:  rkd compare --config configs/robustkd_cifar10.py:ckd --workdir runs/ckd
          rkd backdoor-table runs/ckd runs/badnets
Cost:     see docs/backdoors_results.md.
Expected: the tables in docs/backdoors_results.md.

The pair of the paper (arXiv:2406.03409). Students see clean images alone: with labels
and features as published (OFD), and by the recipes through which a backdoor passes
between small networks, a reused head and logits without labels; then what stops it,
with a tenth of the training images. bfloat16, batches of 128, random crops and flips.
The paper trains for 200 to 300 epochs, this for few.

Variants, a trigger each: ckd, badnets, blended. Does it run? smoke
"""

import ml_collections

TRIGGERS = {
    'ckd': {'rate': 0.05, 'copies': True, 'start': 'source', 'layer': 'stage3'},
    'badnets': {},
    'blended': {},
}
VARIANTS = (*TRIGGERS, 'smoke')


def get_config(variant='ckd'):
  """What differs from the defaults."""
  smoke = variant == 'smoke'
  trigger = 'ckd' if smoke else variant
  teacher = {
      'method': 'standard', 'model': 'wide_resnet28_4',
      **SGD,
      'train': {'epochs': 12, 'checkpoint_every': 12}, 'validation': {'every': 12}}
  config = ml_collections.ConfigDict({
      'model': 'wide_resnet16_4',
      'dtype': 'bfloat16',
      'single_teacher': 'poisoned',
      'data': {'name': 'cifar10', 'augmentation': 'crop_flip'},
      'optimizer': {'clip_norm': 1.0},
      'schedule': {'warmup': 0.1},
      'train': {'epochs': 10, 'checkpoint_every': 10},
      'validation': {'every': 10},
      'evaluation': {'attacks': ('clean',), 'batch_size': 1000},
      'detox': {'share': 0.1},
      'teachers': {
          'clean': {'overrides': teacher},
          'poisoned': {'overrides': {**teacher, 'backdoor': {
              'trigger': trigger, **TRIGGERS[trigger]}}}},
      'compare': {'seeds': (0, 1, 2) if variant == 'ckd' else (0,),
                  'students': STUDENTS},
  })
  if smoke:
    config.data.update({'train_examples': 256, 'test_examples': 100})
    config.train.update({'epochs': 1, 'batch_size': 32})
    config.validation = {'every': 1, 'examples': 50}
    config.evaluation.batch_size = 50
    config.compare.students = tuple(
        row for row in STUDENTS if row[0] in ('head', 'features OFD, CE, mask'))
    for name in ('clean', 'poisoned'):
      config.teachers[name].overrides.train.epochs = 1
      config.teachers[name].overrides.model = 'wide_resnet10_1'
    config.model = 'wide_resnet10_1'
    config.teachers.poisoned.overrides.backdoor.options = {'steps': 3}
  return config


SGD = {'optimizer': {'weight_decay': 5e-4, 'nesterov': True}}
ADAM = {'optimizer': {'name': 'adam', 'learning_rate': 2e-3, 'weight_decay': 0.0,
                      'clip_norm': 0.0}}
CE = {'method': 'robustkd', **SGD, 'robustkd': {'features': 'none'}}
OFD = {'method': 'robustkd', **SGD}
HEAD = {'method': 'robustkd', **ADAM, 'robustkd': {
    'features': 'none', 'cross_entropy': 0.0, 'head': 'reused'}}
# The default rate, which suits small networks, costs these half of their accuracy.
GENTLE = {'learning_rate': 1e-4, 'temperature': 4.0}
LOGITS = {'method': 'sd', **ADAM, 'sd': {'temperature': 4.0, 'alpha': 1.0}}


def _clean(recipe):
  return {**recipe, 'single_teacher': 'clean'}


def _defended(recipe, method, **options):
  return {**recipe, 'detox': {'method': method, 'options': options}}


STUDENTS = (
    ('CE alone', CE),
    ('features OFD, CE', OFD),
    ('head', HEAD),
    ('logits', LOGITS),
    ('head, clean teacher', _clean(HEAD)),
    ('logits, clean teacher', _clean(LOGITS)),
    ('head, reversed', _defended(HEAD, 'reversed_trigger')),
    ('logits, reversed', _defended(LOGITS, 'reversed_trigger')),
    ('head, unlearning', _defended(HEAD, 'unlearning', **GENTLE)),
    ('head, unlearning, all', _defended(HEAD, 'unlearning', classes=10, **GENTLE)),
    ('logits, unlearning, all', _defended(LOGITS, 'unlearning', classes=10, **GENTLE)),
    ('features OFD, CE, mask', _defended(OFD, 'masks', cap=0.05)),
    ('head, mask .9', _defended(HEAD, 'masks', cap=0.9)),
    ('head, new_head', _defended(HEAD, 'new_head')),
    ('head, ft_sam', _defended(HEAD, 'ft_sam')),
    ('logits, new_head', _defended(LOGITS, 'new_head')),
    ('logits, ft_sam', _defended(LOGITS, 'ft_sam')),
)
