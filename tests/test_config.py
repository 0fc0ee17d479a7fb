"""Configs: merging, flags, variants, and what bad input gets."""

import json
import pathlib

import pytest

from rkd_jax import config as configuration
from rkd_jax.errors import ConfigError
from rkd_jax.stages import check as stage_check

ROOT = pathlib.Path(__file__).parents[1]


def test_changes_are_laid_over_the_defaults():
  config = configuration.resolve(
      {'attack': {'eps': 1}, 'model': 'mlp_8', 'compare': {'seeds': [3, 4]}})
  defaults = configuration.default_config()
  assert config.attack.eps == 1.0 and isinstance(config.attack.eps, float)
  assert config.attack.steps == defaults.attack.steps
  assert config.compare.seeds == (3, 4)
  assert defaults.model != 'mlp_8'


def test_a_config_survives_json():
  config = configuration.resolve({'teachers': {'clean': {'overrides': {
      'train': {'epochs': 3}}}}, 'compare': {'students': (('a', {'seed': 1}),)}})
  again = configuration.resolve(json.loads(json.dumps(
      configuration.to_dict(config))))
  assert configuration.to_dict(again) == configuration.to_dict(config)
  assert again.teachers.clean.overrides.train.epochs == 3


def test_teachers_do_not_share_their_settings():
  config = configuration.default_config()
  config.teachers.clean.model = 'mlp_8'
  assert config.teachers.robust.model == ''


@pytest.mark.parametrize('changes, message', [
    ({'atack': {}}, 'config.atack does not exist; nearest: config.attack'),
    ({'attack': {'epsilon': 1}}, 'config.attack.epsilon .* config.attack.eps'),
    ({'attack': 3}, 'config.attack holds keys .* got the value 3'),
    ({'model': 3}, "config.model must be a text, got 3"),
    ({'train': {'epochs': 1.5}}, 'config.train.epochs must be a whole number.* got 1.5'),
    ({'ciard': {'push': 1}}, 'config.ciard.push must be true or false, got 1'),
])
def test_unknown_keys_and_wrong_types(changes, message):
  with pytest.raises(ConfigError, match=message):
    configuration.resolve(changes)


def test_flags_change_any_key():
  config = configuration.apply_flags(configuration.resolve(), [
      '--config.attack.steps=3', '--config.model=mlp_8',
      '--config.ciard.push=False', "--config.evaluation.attacks=('clean',)",
      '--config.train.epochs', '4'])
  assert (config.attack.steps, config.model) == (3, 'mlp_8')
  assert config.ciard.push is False
  assert config.evaluation.attacks == ('clean',)
  assert config.train.epochs == 4


@pytest.mark.parametrize('arguments, message', [
    (['--config.attack.stepz=3'], 'nearest: config.attack.steps'),
    (['--config.attack.steps=x'], "steps must be a whole number >= 0, got 'x'"),
    (['--confg.attack.steps=3'], 'unknown argument --confg.attack.steps'),
    (['attack.steps=3'], "unexpected argument 'attack.steps=3'"),
])
def test_bad_flags(arguments, message):
  with pytest.raises(ConfigError, match=message):
    configuration.apply_flags(configuration.resolve(), arguments)


def test_config_files_and_variants(tmp_path):
  file = tmp_path / 'mine.py'
  file.write_text(
      "VARIANTS = ('', 'big')\n"
      "def get_config(variant=''):\n"
      "  return {'train': {'epochs': 9 if variant == 'big' else 2}}\n")
  assert configuration.load_file(str(file)).train.epochs == 2
  assert configuration.load_file(f'{file}:big').train.epochs == 9
  with pytest.raises(ConfigError, match="'bigg': did you mean 'big'"):
    configuration.load_file(f'{file}:bigg')
  with pytest.raises(ConfigError, match='mina.py does not exist; .*mine.py'):
    configuration.load_file(str(tmp_path / 'mina.py'))
  file.write_text('x = 1\n')
  with pytest.raises(ConfigError, match='has no function get_config'):
    configuration.load_file(str(file))


def all_configs():
  for path in sorted((ROOT / 'configs').glob('*.py')):
    namespace = {}
    exec(path.read_text(), namespace)  # noqa: S102
    yield from (f'{path}:{variant}' for variant in namespace['VARIANTS'])


@pytest.mark.parametrize('spec', list(all_configs()), ids=lambda s: s.rpartition('/')[2])
def test_every_config_resolves_and_names_its_command(spec):
  config = configuration.load_file(spec)
  path, _, variant = spec.rpartition(':')
  docstring = pathlib.Path(path).read_text().split('"""')[1]
  assert 'Command:' in docstring and 'Cost:' in docstring
  assert not variant or variant in docstring
  for teacher in config.teachers.values():
    sub = configuration.resolve()
    configuration.overlay(sub, teacher.overrides)
  for _, changes in config.compare.students:
    configuration.overlay(configuration.resolve(config), changes)


@pytest.mark.parametrize('changes, message', [
    ({'model': 'resnet19x'}, 'resnet19x'),
    ({'method': 'rslat'}, "did you mean 'rslad'"),
    ({'dtype': 'float64'}, "config.dtype: unknown value 'float64'"),
    ({'data': {'name': 'digit'}}, "did you mean 'digits'"),
    ({'data': {'augmentation': 'flip'}}, "did you mean 'crop_flip'"),
    ({'data': {'validation': 0.0}}, 'leaves no image'),
    ({'data': {'train_examples': -1}}, 'data.train_examples must be >= 0'),
    ({'attack': {'eps': -0.1}}, 'eps must be >= 0'),
    ({'attack': {'norm': 'l1'}}, 'norm'),
    ({'optimizer': {'name': 'lion'}}, "unknown value 'lion'"),
    ({'schedule': {'name': 'cos'}}, "did you mean 'cosine'"),
    ({'train': {'epochs': 0}}, 'train.epochs must be >= 1'),
    ({'train': {'batch_size': 5000}}, 'batch_size = 5000 is more than the'),
    ({'devices': 99}, 'devices = 99'),
    ({'devices': 3}, 'does not divide by the 3 devices'),
    ({'evaluation': {'attacks': ('pgd21',)}}, "did you mean 'pgd20'"),
    ({'validation': {'attack': 'pgd'}}, "unknown attack 'pgd'"),
    ({'single_teacher': 'robot'}, "did you mean 'robust'"),
    ({'model': 'cnn_4_4_4_4'}, 'needs at least'),
])
def test_bad_settings_are_found_before_anything_is_computed(changes, message):
  with pytest.raises(ConfigError, match=message):
    stage_check.check(configuration.resolve({'devices': 1, **changes}))


def test_a_directory_belongs_to_one_config(tmp_path):
  config = configuration.resolve()
  configuration.claim(tmp_path / 'run', config)
  configuration.claim(tmp_path / 'run', config)
  (tmp_path / 'lost' / 'weights').mkdir(parents=True)
  with pytest.raises(ConfigError, match='holds weights, but no config.json'):
    configuration.claim(tmp_path / 'lost', config)
  config.attack.steps = 3
  with pytest.raises(ConfigError, match=r'attack.steps \(10 there, 3 now\)'):
    configuration.claim(tmp_path / 'run', config)
