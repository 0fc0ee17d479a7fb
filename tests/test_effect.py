"""Settings that would change nothing, and students that do not belong into one table."""

import pathlib

import pytest

import rkd_jax as rkd
from rkd_jax import comparison, experiment
from rkd_jax import config as configuration
from rkd_jax.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[1]
TAUGHT = {'teachers': {'robust': {'overrides': {'method': 'pgd_at'}}}}
DEFENDED = {**TAUGHT, 'method': 'sd', 'detox': {'method': 'masks'}}


@pytest.mark.parametrize('config, words', [
    ({'method': 'standard', 'backdoor': {'rate': 0.2}},
     "config.backdoor.rate = 0.2 has no effect: config.backdoor.trigger is ''"),
    ({'method': 'standard', 'backdoor': {'trigger': 'badnets', 'layer': 'stage1'}},
     "backdoor.layer = 'stage1' has no effect: config.backdoor.trigger is 'badnets'"),
    ({'method': 'standard', 'backdoor': {
        'trigger': 'badnets', 'mode': 'all_to_all', 'target': 3}},
     "backdoor.target = 3 has no effect: config.backdoor.mode is 'all_to_all'"),
    ({'method': 'standard', 'evaluation': {'attacks': ('clean', 'transfer')}},
     "'transfer', which has no effect"),
    ({'method': 'standard', 'compare': {'seeds': (4,)}}, 'compare.seeds.*rkd compare'),
    ({'method': 'standard', 'detox': {'method': 'masks'}}, 'learns from no teacher'),
    (DEFENDED, "learns from robust, but config.detox.teacher is 'poisoned'"),
    ({**TAUGHT, 'method': 'sd', 'rslad': {'kl_scale': 2.0}}, "config.method is 'sd'"),
    ({**TAUGHT, 'method': 'sd', 'detox': {'share': 0.5}}, "config.detox.method is ''"),
    ({**DEFENDED, 'detox': {'share': 0.5}}, "config.detox.method is ''"),
    ({**TAUGHT, 'method': 'standard'}, "'standard' learns from no teacher"),
    ({'method': 'pgd_at', 'single_teacher': 'clean'}, 'single_teacher'),
    ({'method': 'standard', 'validation': {'attack': 'pgd20'}}, 'no robust student'),
    ({'method': 'standard', 'data': {'data_dir': '/tmp'}}, 'comes with scikit-learn'),
    ({'method': 'standard', 'schedule': {'milestones': (0.5,)}}, "name is 'cosine'"),
    ({'method': 'standard', 'optimizer': {'name': 'adam', 'nesterov': True}}, "'adam'"),
    ({'method': 'standard', 'averaging': {'decay': 0.5}}, "averaging.name is 'none'"),
    ({'method': 'standard', 'awp': {'start': 0.5}}, 'config.awp.gamma is 0.0'),
    ({'method': 'ciard', 'ciard': {'push': False, 'push_temperature': 2.0}},
     'push_temperature = 2.0 has no effect: config.ciard.push is False'),
    ({'method': 'ciard', 'ciard': {'temperatures': False, 'temperature_step': 0.1}},
     'config.ciard.temperatures is False'),
    ({'method': 'ciard', 'ciard': {'weights': 'fixed', 'weight_step': 0.1}}, "'fixed'"),
    ({'teachers': {'robust': {'overrides': {'method': 'pgd_at', 'ard': {'alpha': .5}}}}},
     "config.teachers.robust.overrides.ard.alpha = 0.5 has no effect"),
    ({'teachers': {'robust': {'run': 'x', 'model': 'mlp_8'}}}, 'weights is not set'),
])
def test_a_setting_without_effect_is_an_error(config, words):
  with pytest.raises(ConfigError, match=words):
    experiment.check_effect(configuration.resolve(config))


@pytest.mark.parametrize('config', [
    {'method': 'standard'},
    # Its defaults are no setting of anybody's.
    {'method': 'standard', 'backdoor': {'rate': 0.1}, 'rslad': {'kl_scale': 1.0}},
    # A teacher uses what the student does not.
    {**TAUGHT, 'method': 'sd', 'validation': {'attack': 'pgd20'}},
    # The threat is that of the experiment.
    {'method': 'standard', 'attack': {'steps': 3, 'step_size': 0.1}},
    {**DEFENDED, 'detox': {'method': 'masks', 'teacher': 'robust', 'share': 0.3}},
    {'method': 'standard', 'backdoor': {'trigger': 'ckd', 'layer': 'stage1'}},
])
def test_what_some_run_uses_is_none(config):
  experiment.check_effect(configuration.resolve(config))


@pytest.mark.parametrize('students, words', [
    ((('a', {}), ('a', {})), "two students are called 'a'"),
    ((('..', {}),), "the name of a student must .* got '..'"),
    ((('/abs', {}),), 'the name of a student'),
    ((('a/b', {}),), 'the name of a student'),
    ((('<b>', {}),), 'the name of a student'),
    ((('a|b', {}),), 'the name of a student'),
    ((('', {}),), 'the name of a student'),
    ((('a ', {}),), 'the name of a student'),
    ((('a' * 101, {}),), 'the name of a student'),
    (((3, {}),), 'the name of a student'),
    (('a', 'b'), 'must be .*, got the entry'),
    ((('a', {}, {}),), 'got the entry'),
    ({'a': {}}, 'compare.students: must be'),
    ('ab', 'compare.students: must be'),
    ((('robust teacher', {}),), 'the row of a teacher'),
    ((('a', {'seed': 3}),), 'changes seed from 0 to 3'),
    ((('a', {'attack': {'eps': 0.2}}),), 'changes attack.eps'),
    ((('a', {'data': {'name': 'mnist'}}),), "changes data.name from 'digits' to 'mnist'"),
    ((('a', {'compare': {'seeds': (1,)}}),), 'changes compare.seeds'),
    ((('a', {'teachers': {'robust': {'overrides': {'model': 'mlp_8'}}}}),),
     'all students share the teachers'),
    ((('a', {'method': 'sd', 'rslad': {'kl_scale': 2.0}}),),
     r"students\['a'\].rslad.kl_scale = 2.0 has no effect"),
    ((('a', {'rslat': {}}),), r"students\['a'\].rslat does not exist.*rslad"),
    ((('a', {'train': {'epochs': 0}}),), r"students\['a'\].train.epochs must be >= 1"),
])
def test_students_of_one_table(students, words, tmp_path):
  config = {**TAUGHT, 'compare': {'students': students, 'seeds': (0,)}}
  with pytest.raises(ConfigError, match=words):
    rkd.compare(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_sweep_may_turn_things_off_itself():
  """A row without a defence names the teacher that other rows defend."""
  config = configuration.resolve({**TAUGHT, 'compare': {'students': tuple(
      (name or 'none', {'detox': {'method': name, 'teacher': 'robust'}})
      for name in ('', 'masks'))}})
  comparison.check_effect(config, comparison.plan_of(config, ROOT, 0))


def test_an_old_run_goes_on(tmp_path, monkeypatch):
  """What has no effect is refused for new runs, not for those that exist."""
  config = configuration.resolve({'method': 'standard', 'backdoor': {'rate': 0.2}})
  monkeypatch.setattr(experiment, 'run_checked', lambda *_: 'went on')
  with pytest.raises(ConfigError, match='no effect'):
    rkd.run(config, tmp_path)
  configuration.claim(tmp_path, config)
  assert rkd.run(config, tmp_path) == 'went on'
