"""Every key of a config against a table of bad values, written by hand.

Whatever is wrong, the command ends with code 2, says so in one line, and has written
nothing. What is legal is said here, not taken from the declarations under test.
"""

import collections
import math
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from rkd_jax import backdoors, cli, detox
from rkd_jax import config as configuration
from rkd_jax.errors import ConfigError

NAN, INF = math.nan, math.inf


class Odd:
  """A value that even breaks its own repr."""

  def __repr__(self):
    raise RuntimeError('no')


# Kind: (values of a wrong type or form, values that are out of range, legal ones).
KINDS = {
    'whole': (['x', '', '3', None, 1.5, NAN, INF, -INF, True, [], {}, (1,), b'1', 1j,
               np.float32(2.5), np.array([1, 2]), Odd()],
              [-1, 10**30, -10**400, 1e300], []),
    'number': (['x', '', '0.1', None, NAN, INF, -INF, True, [], {}, (0.1,), b'1', 1j,
                np.array([0.1]), Odd()], [1e300, 10**400, -1e300], []),
    'flag': ([0, 1, 2.0, 'True', '', None, [], {}], [], [True, False, np.bool_(True)]),
    'text': ([3, 1.5, None, True, [], {}, (), b'x', 'a\nb', 'a\0b', 'x' * 5000, Odd()],
             [], []),
    'mapping': ([3, 'x', None, True, [], (1,), {3: 1}], [], [{}]),
}
NUMBERS = {  # Kind of number: (out of range, legal).
    'positive': ([0, -0.0, -1, 1e-50], [1, 0.5, np.float32(2)]),
    'not negative': ([-1, -1e-9], [0, 1, 2.5]),
    'share': ([-0.1, 1.1, 7], [0, 1, 0.5]),
    'below one': ([-0.1, 1, 7], [0, 0.5]),
    'part': ([0, -0.1, 1.1, 7], [1, 0.5]),
}
POSITIVE, NOT_NEGATIVE, SHARE, BELOW_ONE, PART = (
    ('number', *NUMBERS[name]) for name in NUMBERS)
COUNT = ('whole', [0, 2**31], [1, 400.0, np.int64(7)])
FROM_ZERO = ('whole', [2**31], [0, 1, 400.0])
FLAG, TEXT, MAPPING = ('flag', [], []), ('text', [], []), ('mapping', [], [])


def choice(*names):
  return ('text', ['', 'x', names[0] + ' ', names[0].upper()], list(names))


TEACHER = {'run': TEXT, 'weights': TEXT, 'model': TEXT, 'trigger': TEXT,
           'overrides': ('mapping', [{'x': 1}, {'train': {'epochs': 0}}, {'train': 3}],
                         [{'train': {'epochs': 3}}])}
LIST = [3, 'x', None, True, {}, {'a': 1}, [None], [[]], Odd()]
KEYS = {
    'seed': ('whole', [2**32, 2**63], [0, 2**32 - 1, 7.0]),
    'devices': FROM_ZERO, 'model': TEXT, 'method': TEXT,
    'dtype': choice('float32', 'bfloat16', 'float16'),
    'single_teacher': choice('clean', 'robust', 'poisoned'),
    'data': {'name': TEXT, 'data_dir': TEXT, 'validation': BELOW_ONE,
             'train_examples': FROM_ZERO, 'test_examples': FROM_ZERO,
             'augmentation': TEXT},
    'attack': {'norm': choice('linf', 'l2'),
               'eps': ('number', [-0.1, 8, 255], [0, 8 / 255, 1]),
               'step_size': ('number', [-0.1, 2, 255], [0, 2 / 255]),
               'steps': FROM_ZERO, 'eps_warmup': BELOW_ONE},
    'optimizer': {'name': choice('sgd', 'adam', 'adamw'), 'learning_rate': POSITIVE,
                  'momentum': BELOW_ONE, 'nesterov': FLAG, 'weight_decay': NOT_NEGATIVE,
                  'clip_norm': NOT_NEGATIVE},
    'schedule': {'name': choice('constant', 'step', 'cosine', 'ciard'),
                 'warmup': BELOW_ONE, 'factor': POSITIVE, 'start': BELOW_ONE,
                 'milestones': ('list', [[-0.1], [1.5], [100, 150], [NAN], [0.5, 0.5]],
                                [(), (0.5,), (0.5, 1)])},
    'averaging': {'name': choice('none', 'ema', 'swa'), 'decay': BELOW_ONE,
                  'start': BELOW_ONE},
    'awp': {'gamma': NOT_NEGATIVE, 'start': BELOW_ONE},
    'train': {'epochs': ('whole', [0, 10**12], [1, 300.0]), 'batch_size': COUNT,
              'scan_steps': COUNT, 'checkpoint_every': COUNT},
    'validation': {'every': COUNT, 'examples': FROM_ZERO, 'attack': TEXT},
    'backdoor': {'trigger': TEXT, 'options': MAPPING, 'test_options': MAPPING,
                 'target': FROM_ZERO, 'mode': choice('all_to_one', 'all_to_all'),
                 'rate': PART, 'cover': ('number', [-2], [-1, 0, 2]), 'hardening': PART,
                 'copies': FLAG, 'decoys': FROM_ZERO, 'layer': TEXT, 'start': TEXT},
    'teachers': {'clean': TEACHER, 'robust': TEACHER, 'poisoned': TEACHER},
    'detox': {'method': TEXT, 'options': MAPPING, 'share': PART,
              'teacher': choice('clean', 'robust', 'poisoned')},
    'evaluation': {'attacks': ('list', [(), [3], ['a', 'a']], [('clean',)]),
                   'examples': FROM_ZERO, 'batch_size': COUNT},
    'compare': {'students': ('list', [[3], ['ab'], [('a',)], [('a', 3)], [(3, {})],
                                      [('a', {}, {})], [('a', {}), ('a', {})],
                                      [('..', {})], [('/a', {})], [('a', {'x': 1})],
                                      [('a', {'train': {'epochs': -1}})]],
                             [(), (('a', {}),)]),
                'seeds': ('list', [(), [1.5], [-1], [2**32], ['x'], [0, 0], [True]],
                          [(3, 4), (0,)])},
    'standard': {}, 'pgd_at': {}, 'trades': {'beta': NOT_NEGATIVE},
    'consistency': {'weight': NOT_NEGATIVE, 'temperature': POSITIVE},
    'certified': {'bound': choice('ibp', 'crown_ibp'), 'beta_end': SHARE,
                  'kappa_start': SHARE, 'kappa_end': SHARE,
                  'ramp': choice('linear', 'smooth'), 'init': choice('ibp', 'network'),
                  'regularizer': NOT_NEGATIVE, 'tolerance': POSITIVE},
    'sd': {'temperature': POSITIVE, 'alpha': SHARE},
    'kdiga': {'temperature': POSITIVE, 'alpha': SHARE, 'gamma': NOT_NEGATIVE},
    'ard': {'temperature': POSITIVE, 'alpha': SHARE},
    'iad': {'temperature': POSITIVE, 'alpha': SHARE, 'beta': NOT_NEGATIVE,
            'introspect_from': BELOW_ONE},
    'rslad': {'weight_adv': SHARE, 'kl_scale': POSITIVE},
    'adaad': {'alpha': SHARE, 'kl_scale': POSITIVE},
    'dgad': {'beta': NOT_NEGATIVE},
    'mtard': {'weight_step': SHARE, 'kl_scale': POSITIVE},
    'fd': {'weight_adv': SHARE, 'temperature': POSITIVE},
    'adaptive': {'weight': NOT_NEGATIVE, 'variance': choice('batch', 'channel')},
    'robustkd': {'features': choice('ofd', 'attention', 'plain', 'none'),
                 'feature_weight': NOT_NEGATIVE, 'cross_entropy': NOT_NEGATIVE,
                 'head': choice('own', 'reused'), 'head_weight': NOT_NEGATIVE,
                 'layers': TEXT, 'student_layers': TEXT, 'universal_eps': SHARE,
                 'universal_steps': COUNT, 'universal_weight': NOT_NEGATIVE},
    'adba': {'shadow': TEXT, 'target': FROM_ZERO, 'beta': NOT_NEGATIVE, 'alpha': SHARE,
             'temperature': POSITIVE, 'mu': NOT_NEGATIVE,
             'norm': ('number', [0, 3, 1.5], [1, 2]), 'opacity': PART, 'brightest': PART,
             'shadow_learning_rate': POSITIVE, 'trigger_learning_rate': POSITIVE},
}
KEYS['adaiad'] = KEYS['iad']
KEYS['cfd'] = {**KEYS['fd'], 'kappa': NOT_NEGATIVE, 'bound': choice('ibp', 'crown_ibp'),
               'ramp': choice('linear', 'smooth')}
KEYS['b_mtard'] = {
    **KEYS['mtard'], 'temperature_step': NOT_NEGATIVE,
    'temperature_min': ('number', [0, -1, 2], [0.5, 1]),
    'temperature_max': ('number', [0, -1, 0.5], [1, 5])}
KEYS['ciard'] = {
    **KEYS['b_mtard'], 'weights': choice('mtard', 'fixed'), 'weight_adv': NOT_NEGATIVE,
    'weight_clean': NOT_NEGATIVE, 'temperatures': FLAG, 'push': FLAG,
    'push_temperature': POSITIVE, 'teacher_batch_norm': choice('train', 'eval'),
    'retrain': FLAG, 'retrain_from': BELOW_ONE, 'retrain_learning_rate': POSITIVE,
    'retrain_momentum': BELOW_ONE, 'retrain_weight_decay': NOT_NEGATIVE}
TUNED = {'steps': FROM_ZERO, 'learning_rate': POSITIVE, 'batch_size': COUNT}
FINETUNED = {**TUNED, 'weight_decay': NOT_NEGATIVE}
UNIVERSAL = {**TUNED, 'eps': SHARE, 'attack_steps': FROM_ZERO, 'restart_every': COUNT,
             'weight': NOT_NEGATIVE}
REVERSED = {**TUNED, 'classes': FROM_ZERO, 'eps': SHARE, 'search_steps': COUNT,
            'temperature': POSITIVE, 'weight': NOT_NEGATIVE}
DEFENCES = {
    'masks': {**TUNED, 'cap': SHARE, 'weight': NOT_NEGATIVE, 'form': choice('mix', 'add'),
              'variance': choice('batch', 'spatial', 'all'), 'layers': TEXT},
    'gates': {**UNIVERSAL, 'penalty': NOT_NEGATIVE, 'layers': TEXT, 'head': FLAG,
              'weights': FLAG},
    'new_head': UNIVERSAL, 'reversed_trigger': REVERSED,
    'unlearning': {**REVERSED, 'attack_steps': FROM_ZERO, 'restart_every': COUNT},
    'finetune': FINETUNED, 'nad': {**FINETUNED, 'beta': NOT_NEGATIVE, 'layers': TEXT},
    'fine_pruning': {**FINETUNED, 'accuracy_loss': SHARE, 'layer': TEXT},
    'anp': {**TUNED, 'eps': NOT_NEGATIVE, 'trade_off': SHARE, 'threshold': SHARE,
            'accuracy_loss': SHARE},
    'i_bau': {**TUNED, 'rounds': COUNT, 'inner_steps': FROM_ZERO, 'radius': POSITIVE,
              'inner_rate': POSITIVE, 'fixed_point_steps': FROM_ZERO},
    'ft_sam': {**FINETUNED, 'rho': NOT_NEGATIVE, 'smoothing': SHARE},
}
SEED = KEYS['seed']
OPTIMISED = {'steps': COUNT, 'learning_rate': POSITIVE, 'batch_size': COUNT, 'seed': SEED}
TRIGGERS = {
    'badnets': {'size': ('whole', [0, 8, 10**6], [1, 4]),
                'margin': ('whole', [6, 10**6], [0, 1]), 'value': SHARE},
    'blended': {'opacity': PART, 'seed': SEED},
    'sig': {'amplitude': PART, 'frequency': ('number', [0, -1, 4, 8], [1, 2.5])},
    'lc': {'size': ('whole', [0, 5], [1, 4])},
    'wanet': {'grid': ('whole', [0, 1, 10**6], [2, 5]), 'strength': POSITIVE,
              'seed': SEED},
    'input_aware': {**OPTIMISED, 'density': SHARE},
    'ckd': {**OPTIMISED, 'opacity': PART, 'top': PART},
    'lba': {**OPTIMISED, 'size': ('whole', [0, 8], [1, 7])},
}


def leaves(table, prefix=()):
  for name, entry in table.items():
    if isinstance(entry, dict):
      yield from leaves(entry, (*prefix, name))
    else:
      yield (*prefix, name), entry


def bad_values(kind, out_of_range):
  wrong, beyond, _ = KINDS.get(kind, (LIST, [], []))
  return [*wrong, *beyond, *out_of_range]


def nested(path, value):
  for name in reversed(path):
    value = {name: value}
  return value


def dotted(config, prefix=''):
  for name, value in config.items():
    if isinstance(value, dict) and value:
      yield from dotted(value, f'{prefix}{name}.')
    elif prefix or not isinstance(value, dict):  # Some methods have no settings.
      yield prefix + name


def test_the_table_holds_every_key():
  wanted = set(dotted(configuration.to_dict(configuration.default_config())))
  assert {'.'.join(path) for path, _ in leaves(KEYS)} == wanted
  assert {name: set(entries) for name, entries in DEFENCES.items()} == {
      name: set(detox.defaults(name)) for name in detox.METHODS}
  assert set(TRIGGERS) == set(backdoors.NAMES)


@pytest.fixture
def command(tmp_path, capsys, monkeypatch):
  """`command(config, *flags) -> complaint` of `rkd train`, whose code must be 2."""
  monkeypatch.setitem(sys.modules, 'rkd_given', given := types.ModuleType('rkd_given'))
  file = tmp_path / 'config.py'
  file.write_text('import rkd_given\n\ndef get_config(variant):\n'
                  '  return rkd_given.config\n')

  def run(config, *flags, name='train'):
    given.config = config
    code = cli.main([name, '--config', str(file), '--workdir', str(tmp_path / 'run'),
                     *flags])
    out, err = capsys.readouterr()
    assert code == 2 and not out, (config, flags, code)
    assert err.startswith('rkd: ') and err.count('\n') == 1, err
    assert len(err) < 2000 and 'Traceback' not in err
    assert [path.name for path in tmp_path.iterdir()] == ['config.py']
    return err

  return run


TRIED = collections.Counter()


@pytest.mark.parametrize('section', sorted(KEYS))
def test_bad_values_of_a_section(section, command):
  entries = KEYS[section] if isinstance(KEYS[section], dict) else None
  for path, (kind, out_of_range, _) in leaves({section: KEYS[section]}):
    for value in bad_values(kind, out_of_range):
      err = command(nested(path, value))
      assert path[0] in err, err
      TRIED[section] += 1
  for value in (3, 'x', None, [], True):
    if entries is not None:
      assert f'config.{section}' in command({section: value})
      TRIED[section] += 1
  assert 'does not exist' in command({section + 'x': {}})


def test_a_thousand_were_tried():
  assert TRIED.total() > 1000 or len(TRIED) < len(KEYS)  # Where a part runs alone.


@pytest.mark.parametrize('section', sorted(KEYS))
def test_legal_values_of_a_section(section):
  for path, (kind, _, legal) in leaves({section: KEYS[section]}):
    for value in [*legal, *KINDS.get(kind, ([], [], []))[2]]:
      config = configuration.resolve(nested(path, value))
      got = configuration.value(config, '.'.join(path))
      assert got == value, (path, value, got)
      if kind in ('whole', 'number', 'flag'):
        assert type(got) is {'whole': int, 'number': float, 'flag': bool}[kind]


@pytest.mark.parametrize('section', sorted(KEYS))
def test_bad_flags_of_a_section(section, command):
  for path, (kind, _, _) in leaves({section: KEYS[section]}):
    texts = {'text': [], 'mapping': ['x', '3', '[', '{1', '{1: 2}'],
             'list': ['x', '3', '[', '(1,', '{}', 'None']}.get(
                 kind, ['x', '', 'nan', '-inf', '1e999', '[', '(1,)', 'None', '1j'])
    for text in texts:
      command({}, f'--config.{".".join(path)}={text}')
  command({}, f'--config.{section}x=1')
  command({}, f'--config.{section}')


@pytest.mark.parametrize('name', sorted(DEFENCES))
def test_bad_options_of_a_defence(name):
  for key, (kind, out_of_range, legal) in DEFENCES[name].items():
    for value in bad_values(kind, out_of_range):
      with pytest.raises(ConfigError, match=f'{name}.{key}'):
        detox.check_settings(name, {key: value})
    for value in [*legal, *KINDS[kind][2]]:
      assert getattr(detox.check_settings(name, {key: value}), key) == value


@pytest.mark.parametrize('name', sorted(TRIGGERS))
def test_bad_options_of_a_trigger(name, command):
  base = {'trigger': name, 'layer': 'stage1'} if name in ('ckd', 'lba') else {
      'trigger': name}
  for key, (kind, out_of_range, _) in TRIGGERS[name].items():
    for value in bad_values(kind, out_of_range):
      command({'method': 'standard', 'backdoor': {**base, 'options': {key: value}}})


@pytest.mark.parametrize('text, words', [
    ('raise ValueError("broken\\nin two")', 'line 1: ValueError: broken in two'),
    ('def get_config(variant):\n  return {}[variant]', "line 2: KeyError: ''"),
    ('import sys\nsys.exit(0)', 'calls sys.exit(0)'),
    ('import sys\ndef get_config(variant):\n  sys.exit(0)', 'calls sys.exit(0)'),
    ('raise SystemExit', 'calls sys.exit(None)'),
    ('def get_config(', 'line 1: SyntaxError'),
    ('def get_config():\n  return {}', 'TypeError'),
    ('def get_config(variant):\n  return get_config(variant)', 'RecursionError'),
    ('get_config = 3', 'no function get_config'),
    ('', 'no function get_config'),
    ('import no_such_module', 'ModuleNotFoundError'),
    ('VARIANTS = 3\ndef get_config(variant):\n  return {}', 'VARIANTS must be'),
    *[(f'def get_config(variant):\n  return {value}', 'must return a mapping')
      for value in ('None', '3', '"x"', '[1]', '()', 'True', 'print', 'float("nan")')],
    ('def get_config(variant):\n  return {3: 4}', 'config.3 does not exist'),
    ('def get_config(variant):\n  a = {}\n  a["data"] = a\n  return a',
     'config.data.data does not exist'),
    ('\0', 'SyntaxError'),
])
def test_bad_config_files(text, words, tmp_path, capsys):
  file = tmp_path / 'mine.py'
  file.write_text(text)
  code = cli.main(['train', '--config', str(file), '--workdir', str(tmp_path / 'run')])
  err = capsys.readouterr().err
  assert code == 2 and err.count('\n') == 1 and words in err, err
  assert not (tmp_path / 'run').exists()


def test_where_config_files_lie(tmp_path, capsys, monkeypatch):
  good = "VARIANTS = ('a',)\ndef get_config(variant):\n  return {'model': variant or '-'}"
  load = lambda spec: configuration.load_file(str(spec)).model
  for name in ('no_suffix', 'text.txt', 'a:b.py', 'a:b', 'sp ace.py'):
    (tmp_path / name).write_text(good)
    assert load(tmp_path / name) == '-'
    assert load(f'{tmp_path / name}:a') == 'a'
  monkeypatch.setenv('HOME', str(tmp_path))
  assert load('~/text.txt:a') == 'a'
  (tmp_path / 'bytes.py').write_bytes(b'\xff\xfe\x00\x01')
  os.mkfifo(tmp_path / 'fifo.py')
  for spec in ('bytes.py', 'fifo.py', '.', 'missing.py', 'no/such/dir/x.py:a', 'x' * 5000,
               'text.txt:b', 'text.txt:a:a', '', ':', 'a\0b', '~nobody/x.py'):
    argument = str(tmp_path / spec) if spec and spec[0] not in ':~' else spec
    code = cli.main(['train', '--config', argument, '--workdir', str(tmp_path / 'run')])
    err = capsys.readouterr().err
    assert code == 2 and err.count('\n') == 1 and len(err) < 2000, (spec, err)
  with pytest.raises(ConfigError, match='config file gs:/bucket/x.py does not exist'):
    load('gs://bucket/x.py')


@pytest.mark.parametrize('arguments', [
    [], ['trian'], ['train'], ['train', '--config'], ['train', '--workdir', 'x'],
    ['evaluate', '--workdir', 'x', '--examples', 'x'], ['config', 'x'], ['list', 'x'],
    ['certify', '--workdir', 'x', '--timeout', '1e'], ['detect'], ['show-trigger', '3'],
    ['config', '--config.seed=1'],
    *[['certify', '--workdir', 'x', *wrong.split()] for wrong in (
        '--eps nan', '--eps inf', '--eps -0.1', '--eps 8', '--eps 0.1,0.1', '--eps ,',
        '--examples 0', '--examples -3', '--method crwn', '--timeout 0', '--timeout nan',
        '--timeout inf')],
])
def test_bad_arguments(arguments, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert cli.main(arguments) == 2
  err = capsys.readouterr().err
  assert err.startswith('rkd: ') and err.count('\n') == 1
  assert not list(tmp_path.iterdir())


def test_the_command_itself(tmp_path):
  """A few of the above as a process of its own: code, one line, nothing written."""
  file = tmp_path / 'config.py'
  file.write_text('def get_config(variant):\n  return {}')
  for flag in ('--config.seed=4294967296', '--config.model=resnet999998'):
    done = subprocess.run(
        [sys.executable, '-m', 'rkd_jax', 'train', '--config', str(file), '--workdir',
         str(tmp_path / 'run'), flag], capture_output=True, text=True, check=False,
        timeout=120, env={**os.environ, 'XLA_FLAGS': ''})
    assert done.returncode == 2 and done.stdout == '', done
    assert done.stderr.count('\n') == 1 and flag.split('.')[-1].split('=')[1] in (
        done.stderr.replace(',', '')), done.stderr
    assert not (tmp_path / 'run').exists()
