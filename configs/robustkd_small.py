"""Does a backdoor pass from a teacher to its student, and what stops it?

Command:  rkd compare --config configs/robustkd_small.py:fashion_mnist_badnets \\
              --workdir runs/fashion_badnets
          rkd backdoor-table runs/fashion_badnets runs/fashion_blended
Cost:     see docs/backdoors_results.md.
Expected: the tables in docs/backdoors_results.md.

One poisoned teacher (cnn_16_32, standard training), students cnn_8_16 that see clean
images alone. First without a defence, by every recipe: cross-entropy alone, features
with cross-entropy (plain, and OFD as published), a reused head, logits at T = 1, 4 and
20, the last two with and without labels. A defence counts only in recipes through which
the backdoor passes: then RobustKD's published mask, the gates and the new head of this
library and the baselines follow for the reused head and for logits (T = 4), each on the
teacher before the same distillation, and the same two recipes from a clean teacher.
'reversed' is the new head against the trigger that `rkd detect` finds.

Variants, a trigger each: mnist_badnets, mnist_blended, mnist_sig, mnist_lc, mnist_wanet,
mnist_input_aware, mnist_ckd, mnist_lba, fashion_mnist_badnets, fashion_mnist_blended,
fashion_mnist_sig, fashion_mnist_lc, fashion_mnist_wanet, fashion_mnist_input_aware,
fashion_mnist_ckd, fashion_mnist_lba. With fewer rows: mnist_badnets_short,
mnist_wanet_short, fashion_mnist_sig_short, fashion_mnist_lc_short,
fashion_mnist_input_aware_short, fashion_mnist_lba_short. With those of the new head
alone: fashion_mnist_blended_new_head, fashion_mnist_wanet_new_head,
fashion_mnist_ckd_new_head. With those of both new heads: fashion_mnist_badnets_reversed,
fashion_mnist_blended_reversed, fashion_mnist_sig_reversed, fashion_mnist_wanet_reversed,
fashion_mnist_ckd_reversed, mnist_blended_reversed, mnist_sig_reversed,
mnist_lc_reversed, mnist_input_aware_reversed, mnist_ckd_reversed,
mnist_lba_reversed. All weights instead of the head, with 'unlearning' in the place of
'reversed': fashion_mnist_badnets_unlearning, fashion_mnist_blended_unlearning,
fashion_mnist_sig_unlearning, fashion_mnist_wanet_unlearning,
fashion_mnist_ckd_unlearning. With the undefended students alone:
fashion_mnist_sig_passing, fashion_mnist_lc_passing, fashion_mnist_input_aware_passing,
fashion_mnist_lba_passing. With baselines that train harder than their defaults:
fashion_mnist_badnets_baselines, fashion_mnist_blended_baselines. CIFAR-10:
cifar10_badnets, what passes between networks with BatchNorm, wide_resnet16_1 to
wide_resnet10_1, on 5,000 images; cifar10_ckd, the same with CKD; cifar10_badnets_cnn,
the fewer rows with the networks of the other data sets.
mnist_adba, fashion_mnist_adba: a teacher made so that its backdoor survives distillation
with labels; read every row beside 'CE alone', which no teacher taught, because its
trigger is also a universal perturbation. Others:
fashion_mnist_badnets_labels, fashion_mnist_blended_labels, fashion_mnist_sig_labels,
fashion_mnist_wanet_labels, fashion_mnist_ckd_labels: logits with labels;
fashion_mnist_badnets_cap, fashion_mnist_badnets_weight, fashion_mnist_badnets_layers,
fashion_mnist_badnets_share: sensitivity to the mask's cap, lambda and layers and to the
clean data; fashion_mnist_badnets_gates: which part of the gates does what;
fashion_mnist_badnets_families: other students; fashion_mnist_badnets_adaptive: an
attacker who keeps feature variance low; fashion_mnist_badnets_decoys: one who gives
every class a trigger, so that none stands out; fashion_mnist_badnets_all_to_all: one
who turns each class into the next; fashion_mnist_badnets_compose: ciard and fd from a
detoxified teacher. Does it run? smoke
"""

import ml_collections

TRIGGERS = ('badnets', 'blended', 'sig', 'lc', 'wanet', 'input_aware', 'ckd', 'lba')
_PAIRS = tuple(f'{data}_{trigger}' for data in ('mnist', 'fashion_mnist')
               for trigger in TRIGGERS)
_BADNETS = 'fashion_mnist_badnets'
# With some of the rows.
_FEW = (
    ('mnist', 'short', ('badnets', 'wanet')),
    ('mnist', 'reversed', ('blended', 'sig', 'lc', 'input_aware', 'ckd', 'lba')),
    ('fashion_mnist', 'short', ('sig', 'lc', 'input_aware', 'lba')),
    ('fashion_mnist', 'new_head', ('blended', 'wanet', 'ckd')),
    ('fashion_mnist', 'labels', ('blended', 'sig', 'wanet', 'ckd')),
    ('fashion_mnist', 'reversed', ('badnets', 'blended', 'sig', 'wanet', 'ckd')),
    ('fashion_mnist', 'unlearning', ('badnets', 'blended', 'sig', 'wanet', 'ckd')),
    ('fashion_mnist', 'baselines', ('badnets', 'blended')),
    ('fashion_mnist', 'passing', ('sig', 'lc', 'input_aware', 'lba')))
VARIANTS = (*_PAIRS, *(f'{data}_{trigger}_{what}'
                       for data, what, triggers in _FEW for trigger in triggers),
            'cifar10_badnets', 'cifar10_badnets_cnn', 'cifar10_ckd', 'mnist_adba',
            'fashion_mnist_adba',
            *(f'{_BADNETS}_{what}' for what in (
                'labels', 'cap', 'weight', 'layers', 'share', 'gates', 'families',
                'adaptive', 'decoys', 'compose', 'all_to_all')), 'smoke')

# What the attacks need on these data sets to reach a success rate of 95 %.
ATTACKS = {
    'sig': {'rate': 0.5, 'options': {'amplitude': 40 / 255},
            'test_options': {'amplitude': 120 / 255}},
    'lc': {'rate': 0.5, 'options': {'size': 7}, 'hardening': 0.4},
    'wanet': {'cover': 0.1, 'options': {'strength': 3.0, 'grid': 8}},
    'input_aware': {'rate': 0.2},
    'ckd': {'rate': 0.05, 'copies': True, 'start': 'source', 'layer': 'stage2'},
    'lba': {'rate': 0.1, 'start': 'source', 'layer': 'stage2', 'options': {'size': 7}},
}
# Digits are learnt without the trigger more easily.
MNIST_ATTACKS = {
    'sig': {'rate': 0.9, 'options': {'amplitude': 40 / 255},
            'test_options': {'amplitude': 160 / 255}},
    'lc': {**ATTACKS['lc'], 'hardening': 0.5},
    'lba': {**ATTACKS['lba'], 'rate': 0.2},
}
DECOYS = {'decoys': 9, 'rate': 0.02, 'copies': True}
# Of the teachers; 12 where nothing is said.
EPOCHS = {'input_aware': 24, 'lc': 24, 'decoys': 24}
# The trigger is faint enough that 'CE alone' mostly resists it; with opacity 1 that
# student obeys it too. One validation, since triggers of earlier epochs are unfinished.
ADBA = {'method': 'adba', 'model': 'cnn_16_32', 'validation': {'every': 12},
        'adba': {'opacity': 0.2, 'mu': 0.0}}


def get_config(variant=''):
  """What differs from the defaults."""
  smoke = variant == 'smoke'
  if smoke or not variant:
    variant = _BADNETS
  data, trigger, what = split(variant)
  normalised = data == 'cifar10' and what != 'cnn'
  teacher = 'wide_resnet16_1' if normalised else 'cnn_16_32'
  attacks = {**ATTACKS, **(MNIST_ATTACKS if data == 'mnist' else {})}
  epochs = EPOCHS.get(what, EPOCHS.get(trigger))
  longer = {'epochs': epochs, 'checkpoint_every': epochs} if epochs else {}
  config = ml_collections.ConfigDict({
      'model': 'cnn_8_16',
      'single_teacher': 'poisoned',
      'data': {'name': data, 'train_examples': 10_000, 'test_examples': 2_000},
      'optimizer': {'learning_rate': 0.05, 'clip_norm': 1.0, 'weight_decay': 5e-4},
      'schedule': {'warmup': 0.1},
      'train': {'epochs': 12, 'checkpoint_every': 12},
      'validation': {'every': 4, 'examples': 500},
      'evaluation': {'attacks': ('clean',), 'batch_size': 500},
      'attack': {'eps': 0.1, 'step_size': 0.025, 'eps_warmup': 0.5},
      'detox': {'share': 0.1},
      'teachers': {'poisoned': {'overrides': ADBA if what == 'adba' else {
          'method': 'adaptive' if what == 'adaptive' else 'standard',
          'model': teacher, 'train': longer,
          'backdoor': {'trigger': trigger, **attacks.get(trigger, {}),
                       **(DECOYS if what == 'decoys' else {}),
                       **({'mode': what} if what == 'all_to_all' else {})}}},
          'clean': {'overrides': {
              'method': 'standard', 'model': teacher, 'train': longer}}},
      'compare': {'seeds': (0, 1, 2), 'students': STUDENTS[what]},
  })
  if normalised:
    rows = _named(WRN)
    if trigger == 'ckd':
      config.teachers.poisoned.overrides.backdoor.layer = 'stage3'
      rows = (*rows, *WRN_CKD)
    config.model = 'wide_resnet10_1'
    config.data.train_examples = 5_000
    config.optimizer.learning_rate = 0.1
    config.train.batch_size = 64
    config.compare.students = tuple(
        (name, {**recipe, 'train': {'epochs': 12, 'checkpoint_every': 12},
                'validation': {'every': 12}}) for name, recipe in rows)
  if what == 'compose':
    config.teachers.clean = config.teachers.poisoned
    config.teachers.robust = {'overrides': {'method': 'trades', 'model': 'cnn_16_32'}}
  if smoke:
    config.data.update({'train_examples': 512, 'test_examples': 100})
    config.train.epochs = 2
    config.validation.every = 2
    config.compare = {'seeds': (0,), 'students': (
        ('head', HEAD), ('head, mask', {**HEAD, 'detox': {
            'method': 'masks', 'options': {'steps': 3}}}))}
  return config


def split(variant):
  """(data, trigger, what else); an attacker with a trigger of its own has none."""
  what = ''
  for suffix in STUDENTS:
    if suffix and variant.endswith('_' + suffix):
      variant, what = variant.removesuffix('_' + suffix), suffix
  data = next(d for d in ('fashion_mnist', 'cifar10', 'mnist') if variant.startswith(d))
  return data, variant.removeprefix(data).removeprefix('_'), what


# Labels alone; as a student of the teacher, so that the ASR is that of its trigger.
CE = {'method': 'robustkd', 'robustkd': {'features': 'none'}}
FEATURES = {'method': 'robustkd', 'robustkd': {
    'features': 'plain', 'feature_weight': 1.0}}
# Long enough: with SGD or 12 epochs the head is not fitted and little passes.
ADAM = {'optimizer': {'name': 'adam', 'learning_rate': 2e-3, 'weight_decay': 0.0,
                      'clip_norm': 0.0},
        'train': {'epochs': 25, 'checkpoint_every': 25}, 'validation': {'every': 25}}
HEAD = {'method': 'robustkd', **ADAM, 'robustkd': {
    'features': 'none', 'cross_entropy': 0.0, 'head': 'reused'}}
LOGITS = {'method': 'sd', **ADAM, 'sd': {'temperature': 4.0, 'alpha': 1.0}}


def defended(name, recipe, method, **options):
  """A row: the recipe from a teacher after a defence."""
  return name, {**recipe, 'detox': {'method': method, 'options': options}}


def _logits(temperature, alpha):
  return {**LOGITS, 'sd': {'temperature': float(temperature), 'alpha': alpha}}


def _clean(recipe):
  return {**recipe, 'single_teacher': 'clean'}


OFD = {'method': 'robustkd'}
LOGITS_CE = _logits(4, 0.5)
HEAD_CE = {**HEAD, 'robustkd': {**HEAD['robustkd'], 'cross_entropy': 1.0}}
UNDEFENDED = (('CE alone', CE), ('features, CE', FEATURES), ('features OFD, CE', OFD))
PASSING = (
    *UNDEFENDED, ('head', HEAD), ('head, CE', HEAD_CE), ('logits', LOGITS),
    ('logits, CE', LOGITS_CE), ('logits T 1', _logits(1, 1.0)),
    ('logits T 1, CE', _logits(1, 0.5)), ('logits T 20', _logits(20, 1.0)),
    ('logits T 20, CE', _logits(20, 0.5)))
DEFENCES = ('finetune', 'fine_pruning', 'nad', 'anp', 'i_bau', 'ft_sam')


def _all_defences(short, recipe):
  return ((f'{short}, clean teacher', _clean(recipe)), *(
      defended(f'{short}, {label}', recipe, method, **options)
      for label, method, options in (
          ('mask', 'masks', {'cap': 0.05}), ('mask .9', 'masks', {'cap': 0.9}),
          ('gates', 'gates', {}), ('new_head', 'new_head', {}),
          ('reversed', 'reversed_trigger', {}), *((d, d, {}) for d in DEFENCES))))


def _masks(name, values):
  """Rows of the mask with a cap of 0.9 and one other setting, or other caps."""
  return (('head', HEAD), *(
      defended(f'head, mask {name} {value or "all"}', HEAD, 'masks',
               **{'cap': 0.9, name: value}) for value in values))


FULL = (*PASSING, *_all_defences('head', HEAD), *_all_defences('logits', LOGITS))
SHORT = ('CE alone', 'features OFD, CE', 'head', 'head, clean teacher', 'head, mask .9',
         'head, gates', 'head, new_head', 'head, reversed', 'head, ft_sam',
         'head, i_bau', 'logits', 'logits, clean teacher', 'logits, new_head',
         'logits, reversed', 'logits, ft_sam')
WRN = ('CE alone', 'features OFD, CE', 'head', 'head, clean teacher', 'logits',
       'logits T 20')

# Few steps of the search, whose classes do not matter where all are unlearnt.
WRN_CKD = (
    defended('head, new_head', HEAD, 'new_head'),
    defended('head, unlearning, all, 400', HEAD, 'unlearning', classes=10,
             search_steps=30, steps=400),
    defended('head, unlearning, all', HEAD, 'unlearning', classes=10, search_steps=30))


def _named(names):
  """The rows of the full table with these names."""
  return tuple((name, recipe) for name, recipe in FULL if name in names)


STUDENTS = {
    '': FULL,
    'short': _named(SHORT),
    'cnn': _named(SHORT),
    'new_head': _named(('head', 'head, gates', 'head, new_head', 'logits',
                        'logits, gates', 'logits, new_head')),
    'reversed': _named(('CE alone', *(
        f'{recipe}{what}' for recipe in ('head', 'logits')
        for what in ('', ', clean teacher', ', new_head', ', reversed')))),
    'unlearning': (
        *_named(('head', 'head, clean teacher', 'head, reversed')),
        defended('head, unlearning', HEAD, 'unlearning'),
        defended('head, unlearning, all', HEAD, 'unlearning', classes=10),
        *_named(('logits', 'logits, clean teacher', 'logits, reversed')),
        defended('logits, unlearning', LOGITS, 'unlearning'),
        defended('logits, unlearning, all', LOGITS, 'unlearning', classes=10)),
    'passing': (*PASSING, *_named(('head, clean teacher', 'logits, clean teacher'))),
    # Ten times the rate, more steps: the best of these at seed 0 of BadNets.
    'baselines': (*_named(('head', 'head, clean teacher', 'head, reversed')), *(
        defended(f'head, {method}, rate .1', HEAD, method, learning_rate=0.1, steps=1000)
        for method in ('finetune', 'fine_pruning', 'ft_sam'))),
    'adba': (*UNDEFENDED, ('logits, CE', LOGITS_CE), ('logits', LOGITS),
             *_all_defences('logits, CE', LOGITS_CE)),
    'labels': tuple(
        row for short, recipe in (('logits, CE', LOGITS_CE),
                                  ('logits T 20, CE', _logits(20, 0.5)))
        for row in ((short, recipe), (f'{short}, clean teacher', _clean(recipe)),
                    defended(f'{short}, mask .9', recipe, 'masks', cap=0.9),
                    defended(f'{short}, gates', recipe, 'gates'),
                    defended(f'{short}, new_head', recipe, 'new_head'),
                    defended(f'{short}, reversed', recipe, 'reversed_trigger'),
                    defended(f'{short}, ft_sam', recipe, 'ft_sam'))),
    'cap': _masks('cap', (0.05, 0.2, 0.5, 0.9, 1.0)),
    'weight': _masks('weight', (0.1, 1.0, 10.0, 100.0)),
    'layers': _masks('layers', ('stage1', 'stage2', '')),
    'share': (('head', HEAD), *(
        (f'head, {label}, {share:.0%}', {**HEAD, 'detox': {
            'method': method, 'share': share, 'options': options}})
        for label, method, options in (
            ('mask .9', 'masks', {'cap': 0.9}), ('gates', 'gates', {}),
            ('new_head', 'new_head', {}), ('reversed', 'reversed_trigger', {}),
            ('ft_sam', 'ft_sam', {}))
        for share in (0.01, 0.05, 0.1, 1.0))),
    'gates': (('head', HEAD), *(
        defended(f'head, {label}', HEAD, 'gates', **options) for label, options in (
            ('gates and head, perturbed', {}),
            ('gates and head, clean', {'weight': 0.0}),
            ('gates, perturbed', {'head': False}),
            ('head, perturbed', {'penalty': 0.0, 'layers': 'features'}),
            ('head, clean', {'weight': 0.0, 'penalty': 0.0, 'layers': 'features'})))),
    'families': tuple(
        (f'{model}, {label}', {**recipe, 'model': model})
        for model in ('cnn_4_8', 'cnn_pool_8_16', 'mlp_64_64')
        for label, recipe in (
            ('CE alone', CE), ('logits', LOGITS),
            ('logits, clean teacher', _clean(LOGITS)),
            defended('logits, mask .9', LOGITS, 'masks', cap=0.9),
            defended('logits, new_head', LOGITS, 'new_head'),
            defended('logits, reversed', LOGITS, 'reversed_trigger'))),
    'adaptive': (('head', HEAD), defended('head, mask .9', HEAD, 'masks', cap=0.9),
                 defended('head, gates', HEAD, 'gates'),
                 defended('head, new_head', HEAD, 'new_head'),
                 defended('head, reversed', HEAD, 'reversed_trigger')),
    'decoys': (
        *_named(('CE alone', 'head', 'head, clean teacher', 'head, gates',
                 'head, new_head', 'head, reversed')),
        defended('head, reversed, one class', HEAD, 'reversed_trigger', classes=1),
        *_named(('head, i_bau', 'head, ft_sam')),
        defended('head, finetune, rate .1', HEAD, 'finetune', learning_rate=0.1,
                 steps=1000),
        *_named(('logits', 'logits, clean teacher', 'logits, new_head',
                 'logits, reversed')),
        defended('logits, reversed, one class', LOGITS, 'reversed_trigger', classes=1)),
    'all_to_all': (
        *_named(('CE alone', 'head', 'head, clean teacher', 'head, mask .9',
                 'head, gates', 'head, new_head', 'head, reversed')),
        defended('head, reversed, all', HEAD, 'reversed_trigger', classes=10),
        *_named(('head, ft_sam', 'head, i_bau', 'logits'))),
    'compose': tuple(
        (f'{name}{label}', {
            'method': name, **more, 'detox': {'method': method, 'teacher': teacher}})
        for name, teacher, more in (
            ('ciard', 'clean', {'schedule': {'name': 'ciard'},
                                'ciard': {'kl_scale': 10.0}}),
            ('fd', 'poisoned', {}))
        for label, method in (('', ''), (', new_head', 'new_head'),
                              (', reversed', 'reversed_trigger'))),
}
