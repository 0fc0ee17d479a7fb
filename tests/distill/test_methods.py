"""Each method with one teacher or none: loss, gradient and statistics of one
objective against float64 NumPy, written from the papers' equations."""

import jax
import numpy as np
import pytest

from rkd_jax import distill
from rkd_jax.errors import ConfigError


def expected_terms(lab, name, settings, za, z, t, y):
  """Per-example loss from logits on x', on x, and the teacher's on x."""
  if name == 'standard':
    return lab.ce(z, y)
  if name == 'pgd_at':
    return lab.ce(za, y)
  if name == 'trades':
    return lab.ce(z, y) + settings['beta'] * lab.kl(z, za)
  if name == 'rslad':
    w, scale = settings['weight_adv'], settings['kl_scale']
    return scale * (w * lab.kl(t, za) + (1 - w) * lab.kl(t, z)) / lab.K
  a, temp = settings['alpha'], settings['temperature']
  if name == 'sd':
    return a * temp**2 * lab.kl(t / temp, z / temp) + (1 - a) * lab.ce(z, y)
  assert name == 'ard'
  return (a * temp**2 * lab.kl(t / temp, za / temp) / lab.K
          + (1 - a) * lab.ce(z, y))


CASES = [
    ('normed', 'standard', {}, None, ('x',)),
    ('normed', 'pgd_at', {}, 'uniform', ('adv',)),
    ('normed', 'trades', {}, 'gaussian', ('adv', 'x')),
    ('linear', 'trades', {'beta': 2.0}, 'gaussian', ('adv', 'x')),
    ('normed', 'sd', {}, None, ('x',)),
    ('linear', 'sd', {'alpha': 0.3, 'temperature': 2.0}, None, ('x',)),
    ('normed', 'ard', {}, 'uniform', ('adv', 'x')),
    ('linear', 'ard', {'alpha': 0.4, 'temperature': 3.0}, 'uniform',
     ('adv', 'x')),
    ('normed', 'rslad', {}, 'gaussian', ('adv', 'x')),
    ('linear', 'rslad', {'weight_adv': 0.3, 'kl_scale': 10.0}, 'gaussian',
     ('adv', 'x')),
]


@pytest.mark.parametrize('kind, name, changes, start, passes', CASES)
def test_method(lab, kind, name, changes, start, passes):
  method = distill.make(name, changes, threat=lab.THREAT, epochs=10)
  settings = {**distill.defaults(name), **changes}
  student, batch = lab.bound(kind, 1), lab.batch_of(3)
  teachers = {role: lab.bound('normed', 2, 2.0) for role in method.roles}
  got = lab.evaluate(method.objective_at(0), student, teachers, {}, batch)

  teacher_logits = (teachers['teacher'].predict(batch.image)
                    if teachers else None)
  inner = {'rslad': teacher_logits}
  if name == 'trades':
    inner['trades'] = student.predict(batch.image)
  images = {'x': batch.image}
  if start:
    images['adv'] = lab.attacked(
        student, batch, start=start, reference=inner.get(name))
  t = (lab.forward(lab.float64(teachers['teacher'].variables), batch.image)[0]
       if teachers else None)
  y = np.asarray(batch.label)
  stats = lab.float64(student.variables['batch_stats'])

  def reference(params):
    """Loss [B] and the running statistics after the passes, x' first."""
    logits, after = {}, stats
    for which in passes:
      logits[which], after = lab.forward(
          {'params': params, 'batch_stats': after}, images[which], train=True)
    return expected_terms(
        lab, name, settings, logits.get('adv'), logits.get('x'), t, y), after

  params = lab.float64(student.variables['params'])
  loss, after = reference(params)
  np.testing.assert_allclose(got.loss, loss, rtol=1e-3, atol=1e-5)
  lab.assert_trees_close(
      got.grads, lab.numerical_gradient(lambda p: reference(p)[0].mean(), params),
      rtol=2e-3, atol=1e-4 * max(1, abs(loss).mean()))
  lab.assert_trees_close(
      got.student['batch_stats'], after, rtol=1e-4, atol=1e-5)
  assert got.memory == {}
  assert method.retrained({}) == {}
  for value in got.metrics.values():
    assert value.shape in ((), (lab.B,)) and np.isfinite(value).all()


def test_metrics_are_what_they_say(lab):
  method = distill.make('trades', {}, threat=lab.THREAT, epochs=10)
  student, batch = lab.bound('linear', 1), lab.batch_of(3)
  got = lab.evaluate(method.objective_at(0), student, {}, {}, batch)
  variables = lab.float64(student.variables)
  z, _ = lab.forward(variables, batch.image)
  np.testing.assert_array_equal(
      got.metrics['accuracy_clean'], z.argmax(1) == batch.label)
  np.testing.assert_allclose(
      got.metrics['loss_clean'], lab.ce(z, np.asarray(batch.label)), rtol=1e-4)
  np.testing.assert_allclose(
      got.metrics['loss_clean'] + 6 * got.metrics['loss_adv'], got.loss,
      rtol=1e-5)


def test_every_method_keeps_the_form_of_its_memory(lab):
  """So that steps can be scanned: same structure, shapes and dtypes."""
  teachers = {role: lab.bound('normed', seed) for seed, role in
              enumerate(('teacher', 'clean', 'robust'))}
  for name in distill.METHODS:
    method = distill.make(name, {}, threat=lab.THREAT, epochs=6)
    if method.attach:
      continue  # Needs real networks: see test_robustkd.py, test_adba.py.
    mine = {role: teachers[role] for role in method.roles}
    memory = method.init_memory(mine)
    for _, objective in method.phases:
      out = jax.eval_shape(
          lambda memory, objective=objective, mine=mine: objective(
              lab.bound('normed', 5), mine, memory, lab.batch_of(0)).memory,
          memory)
      describe = lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type)
      assert jax.tree.structure(out) == jax.tree.structure(memory), name
      assert jax.tree.map(describe, out) == jax.tree.map(describe, memory), name


def test_registry():
  assert set(distill.METHODS) == {
      'standard', 'pgd_at', 'trades', 'sd', 'ard', 'rslad', 'mtard', 'b_mtard',
      'ciard', 'certified', 'fd', 'cfd', 'iad', 'adaad', 'adaiad', 'kdiga', 'dgad',
      'consistency', 'robustkd', 'adaptive', 'adba'}
  for name, line in distill.describe().items():
    assert line and '\n' not in line
    for value in distill.defaults(name).values():
      assert type(value) in (int, float, str, bool)
    method = distill.make(name, {}, threat={}, epochs=300)
    assert method.name == name
    starts = [start for start, _ in method.phases]
    assert starts[0] == 0 and starts == sorted(set(starts))
  distill.defaults('ard')['alpha'] = 0.5  # A copy.
  assert distill.defaults('ard')['alpha'] == 1.0


def test_adversarial_says_who_attacks():
  passive = {name for name in distill.METHODS if not distill.make(
      name, {}, threat={}, epochs=3).adversarial}
  assert passive == {'standard', 'sd', 'robustkd', 'adaptive', 'adba'}


def test_roles():
  roles = {name: distill.make(name, {}, threat={}, epochs=3).roles
           for name in distill.METHODS}
  for name in ('standard', 'pgd_at', 'trades', 'certified', 'consistency'):
    assert roles[name] == ()
  for name in ('sd', 'ard', 'rslad', 'iad', 'adaad', 'adaiad', 'kdiga', 'dgad', 'fd'):
    assert roles[name] == ('teacher',)
  for name in ('mtard', 'b_mtard', 'ciard'):
    assert roles[name] == ('clean', 'robust')


@pytest.mark.parametrize('name, settings, threat, words', [
    ('cird', {}, {}, "did you mean 'ciard'"),
    ('ard', {'temprature': 3.0}, {}, "did you mean 'temperature'"),
    ('ard', {'temperature': 0.0}, {}, 'temperature must be > 0'),
    ('ard', {'temperature': '30'}, {}, 'ard.temperature must be a number'),
    ('ard', {'temperature': True}, {}, 'a number'),
    ('ard', {'alpha': 1.5}, {}, r'alpha must be in \[0, 1\], got 1.5'),
    ('ard', {'alpha': float('nan')}, {}, 'alpha'),
    ('sd', {'temperature': float('inf')}, {}, 'temperature'),
    ('sd', {'alpha': -0.1}, {}, 'alpha'),
    ('trades', {'beta': -1.0}, {}, 'beta'),
    ('rslad', {'weight_adv': 2.0}, {}, 'weight_adv'),
    ('rslad', {'kl_scale': 0.0}, {}, 'kl_scale'),
    ('mtard', {'weight_step': 1.1}, {}, 'weight_step'),
    ('mtard', {'temperature_step': 0.1}, {}, 'valid: kl_scale, weight_step'),
    ('b_mtard', {'temperature_min': 2.0}, {}, 'start at 1'),
    ('b_mtard', {'temperature_max': 0.5}, {}, 'start at 1'),
    ('ciard', {'weights': 'mtrad'}, {}, "did you mean 'mtard'"),
    ('ciard', {'weight_adv': -1.0}, {}, 'weight_adv'),
    ('ciard', {'teacher_batch_norm': 'frozen'}, {}, 'valid: eval, train'),
    ('ciard', {'push_temperature': 0}, {}, 'push_temperature'),
    ('ciard', {'push': 1}, {}, 'true or false'),
    ('ciard', {'retrain_from': 1.0}, {}, r'retrain_from must be in \[0, 1\)'),
    ('ciard', {'retrain_momentum': 1.0}, {}, 'retrain_momentum'),
    ('iad', {'temperature': 0.0}, {}, 'temperature must be > 0'),
    ('iad', {'introspect_from': 1.0}, {}, r'introspect_from must be in \[0, 1\)'),
    ('adaiad', {'beta': -0.1}, {}, 'beta must be >= 0'),
    ('adaiad', {'alpha': 1.1}, {}, 'alpha'),
    ('adaad', {'alpha': -0.1}, {}, 'alpha'),
    ('adaad', {'kl_scale': 0.0}, {}, 'kl_scale'),
    ('kdiga', {'gamma': -1.0}, {}, 'gamma must be >= 0'),
    ('kdiga', {'temperature': 0.0}, {}, 'temperature'),
    ('kdiga', {'alpha': 2.0}, {}, 'alpha'),
    ('dgad', {'beta': float('nan')}, {}, 'beta'),
    ('consistency', {'weight': -1.0}, {}, 'weight'),
    ('consistency', {'temperature': 0.0}, {}, 'temperature'),
    ('consistency', {'weigth': 1.0}, {}, "did you mean 'weight'"),
    ('pgd_at', {}, {'norm': 'l1'}, "'l1'"),
    ('pgd_at', {}, {'eps': -0.1}, 'eps'),
    ('pgd_at', {}, {'step_size': float('inf')}, 'step_size'),
    ('pgd_at', {}, {'steps': 2.5}, 'whole number'),
    ('pgd_at', {}, {'steps': -1}, 'steps must be >= 0'),
    ('pgd_at', {}, {'eps_warmup': 1.0}, 'eps_warmup'),
    ('pgd_at', {}, {'epsilon': 0.1}, "did you mean 'eps'"),
])
def test_errors(name, settings, threat, words):
  with pytest.raises(ConfigError, match=words):
    distill.make(name, settings, threat=threat, epochs=10)


def test_epochs_must_be_positive(lab):
  with pytest.raises(ConfigError, match='epochs must be >= 1'):
    distill.make('pgd_at', {}, threat=lab.THREAT, epochs=0)
