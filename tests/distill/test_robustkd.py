"""RobustKD's distillation: losses against the networks' own features in float64,
the head that is folded away, a whole run from a poisoned teacher, errors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rkd_jax as rkd
from rkd_jax import cli, distill, files, models
from rkd_jax.distill import robustkd
from rkd_jax.distill.method import Batch, weighted_mean
from rkd_jax.errors import CheckpointError, ConfigError
from rkd_jax.models import following_norm, masked
from rkd_jax.models.network import BoundNetwork, Network

SHAPE, B, K = (8, 8, 1), 5, 3


def make(**settings):
  return distill.make('robustkd', settings, threat={}, epochs=3)


def network(name, seed):
  net = Network(models.create(name, num_classes=K))
  return BoundNetwork(net, net.init(jax.random.key(seed), SHAPE))


def batch_of(seed=0):
  rng = np.random.default_rng(seed)
  return Batch(
      image=jnp.asarray(rng.uniform(size=(B, *SHAPE)), jnp.float32),
      label=jnp.arange(B) % K, key=jax.random.split(jax.random.key(seed), B),
      step=jnp.int32(0), epoch=jnp.int32(0), progress=jnp.float32(0),
      mean=weighted_mean)


def attach(method, student, teacher):
  attached = method.attach(student.network, {'teacher': teacher}, SHAPE)
  variables = attached.init(jax.random.key(1), attached.network.init(
      jax.random.key(2), SHAPE))
  return BoundNetwork(attached.network, variables), attached.detach


def evaluate(method, student, teacher, batch):
  run = jax.jit(lambda s, t, *fields: (lambda out: (
      out.loss, out.student.variables, dict(out.metrics)))(method.objective_at(0)(
          BoundNetwork(student.network, s), {'teacher': BoundNetwork(teacher.network, t)},
          {}, Batch(*fields))))
  return run(student.variables, teacher.variables, batch.image, batch.label, batch.key,
             batch.step, batch.epoch, batch.progress)


def cross_entropy(logits, label):
  z = np.asarray(logits, np.float64)
  return np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), label]


def connector(variables, name, x):
  """1 x 1 convolution and BatchNorm on the batch's statistics, in float64."""
  p = variables['params']
  y = np.asarray(x, np.float64) @ np.asarray(p[f'connect_{name}']['kernel'])[0, 0]
  axes = tuple(range(y.ndim - 1))
  y = (y - y.mean(axes)) / np.sqrt(y.var(axes) + 1e-5)
  return y * p[f'connect_{name}_bn']['scale'] + p[f'connect_{name}_bn']['bias']


def test_plain_features_through_connectors():
  teacher, batch = network('cnn_5_6', 0), batch_of()
  method = make(features='plain', feature_weight=0.7, cross_entropy=0.3)
  student, _ = attach(method, network('cnn_3_4', 1), teacher)
  loss, _, _ = evaluate(method, student, teacher, batch)
  _, theirs = models.with_features(teacher.network.module, teacher.variables, batch.image)
  base = Network(student.network.module.base)
  own = {'params': student.variables['params']['base'], 'batch_stats': {}}
  logits, ours = models.with_features(base.module, own, batch.image)
  wanted = 0.3 * cross_entropy(logits, np.asarray(batch.label))
  for name in ('stage1', 'stage2'):
    apart = connector(student.variables, name, ours[name]) - np.asarray(theirs[name])
    wanted += 0.7 * np.square(apart).reshape(B, -1).mean(1)
  np.testing.assert_allclose(loss, wanted, rtol=2e-3)


@pytest.mark.slow
def test_overhaul_on_wide_resnets():
  """The teacher's side by its own BatchNorms, the margins by scipy's definition."""
  from scipy import stats
  teacher, batch = network('wide_resnet10_1', 0), batch_of()
  # Statistics that are not those of a fresh network.
  rng = np.random.default_rng(0)
  teacher = BoundNetwork(teacher.network, jax.tree.map(
      lambda leaf: leaf + 0.1 * jnp.asarray(rng.uniform(size=leaf.shape), jnp.float32),
      teacher.variables))
  method = make(features='ofd', feature_weight=1e-2)
  student, detach = attach(method, network('wide_resnet10_2', 1), teacher)
  loss, after, _ = evaluate(method, student, teacher, batch)
  _, theirs = models.with_features(teacher.network.module, teacher.variables, batch.image)
  seen = {}

  def read(name, feature):
    seen[name] = feature
    return feature

  module = student.network.module.base
  logits, _ = module.apply(detach(student.variables), batch.image, train=True, tap=read,
                           mutable=['batch_stats'])
  wanted = cross_entropy(logits, np.asarray(batch.label))
  p, s = teacher.variables['params'], teacher.variables['batch_stats']
  for i, norm in ((1, ('stage2_block0', 'bn1')), (2, ('stage3_block0', 'bn1')),
                  (3, ('last_bn',))):
    scale, stat = p, s
    for key in norm:
      scale, stat = scale[key], stat[key]
    t = ((np.asarray(theirs[f'stage{i}'], np.float64) - stat['mean'])
         / np.sqrt(np.asarray(stat['var'], np.float64) + 1e-5)
         * scale['scale'] + scale['bias'])
    mean, std = (np.asarray(scale[key], float) for key in ('bias', 'scale'))
    std = np.abs(std)
    margin = stats.truncnorm.mean(-np.inf, -mean / std, loc=mean, scale=std)
    target = np.maximum(t, margin)
    mine = connector(student.variables, f'stage{i}', seen[f'stage{i}'])
    counts = (mine > target) | (target > 0)
    wanted += 1e-2 * 2.0**(i - 3) * (counts * np.square(mine - target)).reshape(
        B, -1).sum(1)
  np.testing.assert_allclose(loss, wanted, rtol=5e-3)
  moved = after['batch_stats']['connect_stage1_bn']['mean']
  assert np.abs(moved - student.variables['batch_stats']['connect_stage1_bn']['mean']
                ).max() > 0


def test_the_reused_head_becomes_the_students_own():
  teacher, batch = network('cnn_5_6', 0), batch_of()
  method = make(features='none', cross_entropy=0.0, head='reused', head_weight=2.0)
  student, detach = attach(method, network('cnn_3_4', 1), teacher)
  _, theirs = models.with_features(teacher.network.module, teacher.variables, batch.image)
  base = Network(student.network.module.base)
  alone = detach(student.variables)
  _, ours = models.with_features(base.module, alone, batch.image)
  project = student.variables['params']['connect_features']
  z = np.asarray(ours['features'], np.float64) @ project['kernel'] + project['bias']
  head = teacher.variables['params']['head']
  logits = z @ head['kernel'] + head['bias']
  np.testing.assert_allclose(
      student.predict(batch.image), logits, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(
      base.predict(alone, batch.image), logits, rtol=1e-3, atol=1e-4)
  loss, after, _ = evaluate(method, student, teacher, batch)
  np.testing.assert_allclose(
      loss, 2 * np.square(z - np.asarray(theirs['features'])).mean(1), rtol=1e-3)
  np.testing.assert_array_equal(after['batch_stats']['head_kernel'], head['kernel'])


def test_a_universal_perturbation_is_one_for_the_batch_and_costs_the_student():
  teacher, batch = network('cnn_5_6', 0), batch_of()
  settings = dict(features='none', cross_entropy=0.0, head='reused')
  plain = make(**settings)
  student, _ = attach(plain, network('cnn_3_4', 1), teacher)
  moved = robustkd._universal(
      robustkd.Settings(universal_eps=0.05), student,
      teacher.predict(batch.image) * 5, batch)
  inside = (batch.image > 0.051) & (batch.image < 0.949)
  delta = jnp.where(inside, moved - batch.image, jnp.nan)
  assert np.nanmax(np.abs(delta)) <= 0.05 + 1e-6
  np.testing.assert_allclose(np.nanmax(delta, 0), np.nanmin(delta, 0), atol=1e-6)
  loss, _, _ = evaluate(plain, student, teacher, batch)
  both, _, metrics = evaluate(
      make(**settings, universal_eps=0.05), student, teacher, batch)
  np.testing.assert_allclose(both, loss + metrics['loss_universal'], rtol=1e-4)
  assert (metrics['loss_universal'] > 0).all()


def test_it_learns_from_masked_teachers_of_other_families():
  """What is compared is the detoxified feature: a full mask leaves its reference."""
  teacher, batch = network('cnn_5_6', 0), batch_of()
  full = {'mask': jnp.ones(6), 'reference': jnp.full(6, 0.25)}
  inside, its = masked.wrap(teacher.network, teacher.variables, {'stage2': full})
  teacher = BoundNetwork(inside, its)
  method = make(features='plain', layers='stage2', student_layers='stage1')
  with pytest.raises(ConfigError, match='heights and widths must be equal'):
    attach(method, network('cnn_pool_4', 1), teacher)
  method = make(features='plain', layers='stage2', cross_entropy=0.0, feature_weight=1.0)
  student, _ = attach(method, network('cnn_pool_4_4', 1), teacher)
  loss, _, _ = evaluate(method, student, teacher, batch)
  base = {'params': student.variables['params']['base'], 'batch_stats': {}}
  _, ours = models.with_features(student.network.module.base, base, batch.image)
  apart = connector(student.variables, 'stage2', ours['stage2']) - 0.25
  np.testing.assert_allclose(loss, np.square(apart).reshape(B, -1).mean(1), rtol=2e-3)


def test_gradients_are_finite_and_reach_student_and_connectors():
  teacher, batch = network('cnn_5_6', 0), batch_of()
  for kind in ('ofd', 'attention', 'plain'):
    method = make(features=kind, cross_entropy=0.0, feature_weight=1.0)
    student, _ = attach(method, network('cnn_3_4', 1), teacher)
    grads = jax.jit(jax.grad(lambda params, m=method, s=student: jnp.mean(
        m.objective_at(0)(BoundNetwork(s.network, {**s.variables, 'params': params}),
                          {'teacher': teacher}, {}, batch).loss)))(
                              student.variables['params'])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert np.abs(grads['base']['conv1']['kernel']).max() > 0
    connectors = [name for name in grads if name != 'base']
    assert bool(connectors) == (kind != 'attention')
    for name in connectors:
      assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads[name]))


@pytest.mark.parametrize('settings, message', [
    ({'features': 'ofdd'}, "did you mean 'ofd'"),
    ({'head': 'shared'}, 'robustkd.head: unknown value'),
    ({'feature_weight': -1.0}, 'feature_weight must be >= 0'),
    ({'universal_eps': -0.1}, 'universal_eps'),
    ({'universal_steps': 0}, 'universal_steps must be >= 1'),
])
def test_wrong_settings(settings, message):
  with pytest.raises(ConfigError, match=message):
    make(**settings)


@pytest.mark.parametrize('settings, message', [
    ({'layers': 'stage7'}, "robustkd.layers: there is no tapped layer 'stage7'"),
    ({'student_layers': 'x,y'}, "robustkd.student_layers: .* 'x'"),
    ({'student_layers': 'stage1'}, '2 layers of the teacher but 1'),
])
def test_networks_that_do_not_fit(settings, message):
  with pytest.raises(ConfigError, match=message):
    attach(make(**settings), network('cnn_3_4', 1), network('cnn_5_6', 0))


def test_networks_without_known_margins_are_refused():
  net = models.create('mobilenet_v2', num_classes=K)
  with pytest.raises(ConfigError, match='not known which BatchNorm follows'):
    following_norm.following_norm(net, {}, 'stage1')


SMALL = {
    'devices': 1, 'model': 'cnn_3_4', 'data': {'name': 'digits'},
    'single_teacher': 'poisoned',
    'optimizer': {'name': 'adam', 'learning_rate': 3e-3, 'weight_decay': 0.0},
    'train': {'epochs': 2, 'batch_size': 64}, 'validation': {'every': 2},
    'evaluation': {'attacks': ('clean',)},
    'teachers': {'poisoned': {'overrides': {
        'method': 'standard', 'train': {'epochs': 8},
        'backdoor': {'trigger': 'badnets', 'target': 3}}}},
    'method': 'robustkd', 'robustkd': {'features': 'none', 'head': 'reused'},
    'detox': {'method': 'masks', 'options': {'steps': 5}, 'share': 0.2},
}


def look_for_a_backdoor(workdir, capsys):
  """The search runs on any finished run; here on the student."""
  assert cli.main(['detect', '--workdir', str(workdir), '--examples', '64']) == 0
  assert ('suspects (anomaly above 3.0, or a patch of less than 2.5% of the pixels)'
          in capsys.readouterr().out)
  found = rkd.experiment.detect(SMALL, workdir, examples=64, steps=30)
  assert files.read_json(workdir / 'tables/detect.json', '') == found
  assert found['examples'] == 64 and list(found['classes']) == [str(k) for k in range(10)]
  assert found['suspects'] == [
      int(k) for k, of in found['classes'].items()
      if of['anomaly'] > 3.0 or (of['size'] < 0.025 * 64 and of['success'] >= 0.9)]
  assert set(found['variance']) == {'stage1', 'stage2', 'features'}
  with pytest.raises(ConfigError, match='examples must be >= 0'):
    rkd.experiment.detect(SMALL, workdir, examples=-1)


def test_a_student_of_a_poisoned_teacher(tmp_path, quick_compilation, capsys):
  results = rkd.run(SMALL, tmp_path)
  best = results['student']['best']
  assert best['asr']['n'] == sum(
      rkd.data.load('digits').test.label != 3)  # The target's images are left out.
  table = json.loads((tmp_path / 'tables/detox.json').read_text())
  assert table['examples'] == 259
  before = table['teacher']['before']
  assert before['asr']['accuracy'] > 0.8 and before['clean']['accuracy'] > 0.6
  look_for_a_backdoor(tmp_path, capsys)
  again = rkd.evaluate(SMALL, tmp_path)  # Reads the detoxified teacher back.
  assert again['student'] == results['student']
  teacher = json.loads(
      (tmp_path / 'teachers/poisoned/tables/evaluation.json').read_text())
  assert teacher['student']['best']['asr'] == before['asr']
  with pytest.raises(ConfigError, match='detox.options.steps'):
    rkd.run({**SMALL, 'detox': {**SMALL['detox'], 'options': {'steps': 6}}}, tmp_path)
  too_fast = {'method': 'finetune', 'options': {'steps': 20, 'learning_rate': 1.0}}
  with pytest.warns(UserWarning, match='poisoned teacher fell from .* learning_rate'):
    rkd.run({**SMALL, 'detox': too_fast, 'train': {'epochs': 1}, 'teachers': {
        'poisoned': {'run': str(tmp_path / 'teachers/poisoned')}}}, tmp_path / 'ruined')


@pytest.mark.parametrize('changes, message', [
    ({'backdoor': {'trigger': 'badnet'}}, "did you mean 'badnets'"),
    ({'backdoor': {'trigger': 'sig', 'rate': 0.0}}, r'rate must be in \(0, 1\]'),
    ({'backdoor': {'trigger': 'badnets', 'target': 10}}, 'target 10 is no class'),
    ({'backdoor': {'trigger': 'badnets', 'options': {'sise': 2}}}, "did you mean 'size'"),
    ({'backdoor': {'trigger': 'badnets', 'options': {'size': 20}}}, 'does not fit'),
    ({'backdoor': {'trigger': 'ckd', 'layer': 'stage9'}}, 'backdoor.layer'),
    ({'backdoor': {'trigger': 'lc', 'mode': 'all_to_all'}}, 'all_to_one'),
    ({'backdoor': {'trigger': 'sig', 'copies': True}}, 'backdoor.copies'),
    ({'backdoor': {'trigger': 'sig', 'test_options': {'amplitud': 0.2}}},
     "unknown setting of config.backdoor.test_options.*did you mean 'amplitude'"),
    ({'backdoor': {'trigger': 'sig', 'test_options': {'amplitude': 2.0}}},
     r'amplitude must be in \(0, 1\], got 2.0'),
    ({'backdoor': {'trigger': 'ckd', 'test_options': {'opacity': 0.5}}},
     "'ckd' is made by training"),
    ({'backdoor': {'trigger': 'lc', 'hardening': 0.0}}, r'hardening must be in \(0, 1\]'),
    ({'detox': {'method': 'mask'}}, "did you mean 'masks'"),
    ({'detox': {'method': 'masks', 'options': {'capp': 1.0}}}, "did you mean 'cap'"),
    ({'detox': {'method': 'masks', 'share': 0.0}}, r'share must be in \(0, 1\]'),
    ({'detox': {'method': 'masks', 'teacher': 'bad'}}, 'detox.teacher: unknown value'),
])
def test_wrong_configs_are_found_before_anything_is_written(changes, message, tmp_path):
  with pytest.raises(ConfigError, match=message):
    rkd.run({**SMALL, 'method': 'standard', **changes}, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_weights_and_triggers_of_ones_own(tmp_path, quick_compilation):
  """Poisoning starts from a file; its result is a teacher whose trigger is known."""
  short = {**SMALL['teachers']['poisoned']['overrides'], 'train': {'epochs': 1},
           'validation': {'every': 1}}
  base = {**{k: v for k, v in SMALL.items() if k not in (
      'robustkd', 'detox', 'single_teacher')}, **short,
          'teachers': {}}
  rkd.run(base, tmp_path / 'first')
  file = str(tmp_path / 'first/weights/student-best.safetensors')
  start = {**base, 'optimizer': {
      'name': 'sgd', 'learning_rate': 1e-9, 'weight_decay': 0.0},
           'backdoor': {'trigger': 'badnets', 'target': 3, 'start': file}}
  results = rkd.run(start, tmp_path / 'second')  # Hardly moves: it is that network.
  first = json.loads((tmp_path / 'first/tables/evaluation.json').read_text())
  assert results['student']['best'] == first['student']['best']
  own = {'weights': file, 'model': 'cnn_3_4',
         'trigger': str(tmp_path / 'second/backdoor')}
  student = {**SMALL, 'train': {'epochs': 1}, 'validation': {'every': 1},
             'detox': {}, 'teachers': {'poisoned': own}}
  assert 'asr' in rkd.run(student, tmp_path / 'third')['student']['best']
  for changes, says in (({'trigger': str(tmp_path / 'first/weights')}, 'trigger.json'),
                        ({'model': 'cnn_3_5'}, 'number of classes')):
    folder = tmp_path / next(iter(changes))
    with pytest.raises(CheckpointError, match=says):
      rkd.run({**student, 'teachers': {'poisoned': {**own, **changes}}},
              folder)
  with pytest.raises(ConfigError, match="start = 'nowhere.safetensors': no such file"):
    rkd.run({**start, 'backdoor': {**start['backdoor'], 'start': 'nowhere.safetensors'}},
            tmp_path / 'fifth')
