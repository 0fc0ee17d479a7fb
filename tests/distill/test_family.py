"""IAD, AdaAD, AdaIAD, DGAD, KDIGA and consistency regularisation against float64 NumPy,
written from the papers' equations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rkd_jax import attacks, distill, losses
from rkd_jax.distill import dgad
from rkd_jax.distill.method import Batch
from rkd_jax.training import parallel, state, step


def worst_points(lab, student, teacher, batch):
  """x' by an attack on both networks at once, without the library's losses."""
  def divergence(both):
    s, t = map(jax.nn.log_softmax, both)
    return jnp.sum(jnp.exp(t) * (t - s), axis=1)

  def run(image, key):
    return attacks.pgd(
        lambda x: (student.predict(x), teacher.predict(x)), image, None, key=key,
        objective=divergence, start='gaussian', start_scale=0.001, **lab.THREAT)

  return jax.jit(run, compiler_options=lab.QUICK)(batch.image, batch.key)


def swapped(t, y):
  """Label swapping, one example at a time."""
  t = t.copy()
  for row, label in zip(t, y):
    top = row.argmax()
    row[label], row[top] = row[top], row[label]
  return t


def expected_terms(lab, name, s, introspects, za, z, ta, t, y):
  """Per-example loss from the student's and the teacher's logits on x' and on x."""
  if name == 'adaad':
    return s['kl_scale'] / lab.K * (
        s['alpha'] * lab.kl(ta, za) + (1 - s['alpha']) * lab.kl(t, z))
  if name == 'dgad':
    wrong = t.argmax(1) != y
    apart = ((lab.softmax(za) - lab.softmax(z))**2).mean(1)
    return s['beta'] * apart + np.where(
        wrong, lab.kl(swapped(t, y), z), lab.kl(swapped(ta, y), za))
  T, a = s['temperature'], s['alpha']
  target = t if name == 'iad' else ta
  own = 0.0
  if introspects:
    trust = lab.softmax(ta)[np.arange(len(y)), y] ** s['beta']
    own = (1 - trust) * lab.kl(z, za)
  return (a * (T**2 * lab.kl(target / T, za / T) + own)
          + (1 - a) * lab.ce(z, y))


CASES = [
    ('normed', 'iad', {}, 0),
    ('normed', 'iad', {'beta': 1.5}, 3),
    ('linear', 'iad', {'alpha': 0.4, 'temperature': 2.0}, 3),
    ('normed', 'adaiad', {'beta': 1.5, 'temperature': 3.0}, 3),
    ('normed', 'adaad', {}, 0),
    ('linear', 'adaad', {'alpha': 0.3, 'kl_scale': 10.0}, 0),
    ('normed', 'dgad', {}, 0),
    ('linear', 'dgad', {'beta': 20.0}, 0),
]


@pytest.mark.parametrize('kind, name, changes, epoch', CASES)
def test_loss_gradient_and_statistics(lab, kind, name, changes, epoch):
  method = distill.make(name, changes, threat=lab.THREAT, epochs=10)
  settings = {**distill.defaults(name), **changes}
  student, teacher = lab.bound(kind, 1), lab.bound('normed', 7, 2.0)
  batch = lab.batch_of(20)
  got = lab.evaluate(
      method.objective_at(epoch), student, {'teacher': teacher}, {}, batch)

  adv = (lab.attacked(student, batch, start='uniform') if name == 'iad'
         else worst_points(lab, student, teacher, batch))
  assert np.abs(adv - batch.image).max() > 0.09
  variables, y = lab.float64(teacher.variables), np.asarray(batch.label)
  ta, t = (lab.forward(variables, x)[0] for x in (adv, batch.image))
  right, right_adv = t.argmax(1) == y, ta.argmax(1) == y
  if name == 'dgad':  # All three of its cases.
    assert (~right).any() and right_adv.any() and (right & ~right_adv).any()
  stats = lab.float64(student.variables['batch_stats'])

  def reference(params):
    za, after = lab.forward({'params': params, 'batch_stats': stats}, adv, train=True)
    z, after = lab.forward(
        {'params': params, 'batch_stats': after}, batch.image, train=True)
    return expected_terms(
        lab, name, settings, epoch > 0, za, z, ta, t, y), after

  params = lab.float64(student.variables['params'])
  loss, after = reference(params)
  np.testing.assert_allclose(got.loss, loss, rtol=1e-3, atol=1e-5)
  lab.assert_trees_close(
      got.grads, lab.numerical_gradient(lambda p: reference(p)[0].mean(), params),
      rtol=2e-3, atol=1e-4 * max(1, abs(loss).mean()))
  lab.assert_trees_close(got.student['batch_stats'], after, rtol=1e-4, atol=1e-5)


def test_iad_introspects_from_its_epoch_on():
  starts = lambda **changes: [start for start, _ in distill.make(
      'iad', changes, threat={}, epochs=200).phases]
  assert starts() == [0, 60]  # As published.
  assert starts(introspect_from=0.5) == [0, 100]
  assert starts(introspect_from=0.0) == [0]  # The second phase from the first epoch.
  assert starts(introspect_from=0.999) == [0]  # Never.


def test_adaad_attacks_along_both_gradients(lab):
  """One step: the sign of the total derivative, by differences in float64."""
  student, teacher, batch = lab.bound('linear', 1), lab.bound('linear', 2), (
      lab.batch_of(3))
  threat = {'eps': 0.1, 'step_size': 0.2, 'steps': 1}
  seen = {}

  def once(make):
    seen['adv'] = make()
    return seen['adv']

  distill.make('adaad', {}, threat=threat, epochs=1).objective_at(0)(
      student, {'teacher': teacher}, {}, dataclasses.replace(batch, once=once))
  s, t = lab.float64(student.variables), lab.float64(teacher.variables)
  image = {'x': np.asarray(batch.image, np.float64)}
  kl = lambda moved, fixed: lab.kl(
      lab.forward(t, moved)[0] if fixed is None else fixed,
      lab.forward(s, moved)[0]).sum()
  total = lab.numerical_gradient(lambda i: kl(i['x'], None), image)['x']
  fixed = lab.forward(t, image['x'])[0]
  alone = lab.numerical_gradient(lambda i: kl(i['x'], fixed), image)['x']
  clear = np.abs(total) > 0.02  # The start is 0.001 off.
  assert (np.sign(total) != np.sign(alone))[clear].any()
  moved = np.asarray(seen['adv']) - image['x']
  np.testing.assert_allclose(moved[clear], 0.1 * np.sign(total)[clear], atol=1e-6)


def test_adaad_summed_over_the_classes_is_faithful_distillation(lab):
  student, teacher, batch = lab.bound('linear', 1), lab.bound('normed', 2, 2.0), (
      lab.batch_of(3))
  both = [lab.evaluate(
      distill.make(name, changes, threat=lab.THREAT, epochs=10).objective_at(0),
      student, {'teacher': teacher}, {}, batch)
      for name, changes in (('fd', {}), ('adaad', {'alpha': 5 / 6,
                                                   'kl_scale': float(lab.K)}))]
  np.testing.assert_allclose(both[0].loss, both[1].loss, rtol=1e-5)
  lab.assert_trees_close(both[0].grads, both[1].grads, rtol=1e-4, atol=1e-6)


def test_label_swapping():
  logits = jnp.asarray([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [1.0, 1.0, 0.0]])
  np.testing.assert_array_equal(
      dgad.swap_where_wrong(logits, jnp.asarray([0, 2, 1])),
      [[3, 1, 2], [2, 1, 3], [1, 1, 0]])


@pytest.mark.parametrize('kind, changes', [
    ('normed', {}), ('linear', {'temperature': 2.0, 'alpha': 0.3, 'gamma': 4.0})])
def test_kdiga(lab, kind, changes):
  """The gradient of the alignment by differences of differences."""
  method = distill.make('kdiga', changes, threat={}, epochs=10)
  s = {**distill.defaults('kdiga'), **changes}
  student, teacher, batch = lab.bound(kind, 1), lab.bound('normed', 2), (
      lab.batch_of(3))
  got = lab.evaluate(
      method.objective_at(0), student, {'teacher': teacher}, {}, batch)
  y, image = np.asarray(batch.label), {'x': np.asarray(batch.image, np.float64)}
  stats = lab.float64(student.variables['batch_stats'])
  frozen = lab.float64(teacher.variables)

  def slope(variables, train):
    return lab.numerical_gradient(
        lambda i: lab.ce(lab.forward(variables, i['x'], train=train)[0], y).sum(),
        image, step=1e-4)['x'].reshape(lab.B, -1)

  t, wanted = lab.forward(frozen, batch.image)[0], slope(frozen, False)

  def reference(params):
    variables = {'params': params, 'batch_stats': stats}
    z, after = lab.forward(variables, batch.image, train=True)
    apart = np.linalg.norm(slope(variables, True) - wanted, axis=1)
    T, a = s['temperature'], s['alpha']
    return (a * T**2 * lab.kl(t / T, z / T) + (1 - a) * lab.ce(z, y)
            + s['gamma'] * apart), after

  params = lab.float64(student.variables['params'])
  loss, after = reference(params)
  np.testing.assert_allclose(got.loss, loss, rtol=1e-3)
  lab.assert_trees_close(
      got.grads, lab.numerical_gradient(lambda p: reference(p)[0].mean(), params),
      rtol=2e-3, atol=2e-4)
  lab.assert_trees_close(got.student['batch_stats'], after, rtol=1e-4, atol=1e-5)


def js(p_logits, q_logits, softmax):
  p, q = softmax(p_logits), softmax(q_logits)
  m = (p + q) / 2
  return ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)) / 2


@pytest.mark.parametrize('kind, changes', [
    ('normed', {}), ('linear', {'weight': 3.0, 'temperature': 2.0})])
def test_consistency(lab, kind, changes):
  method = distill.make('consistency', changes, threat=lab.THREAT, epochs=10)
  s = {**distill.defaults('consistency'), **changes}
  student, batch = lab.bound(kind, 1), lab.batch_of(3)
  other = dataclasses.replace(
      batch, image=lab.batch_of(4).image,
      key=jax.vmap(lambda key: jax.random.fold_in(key, 1))(batch.key))
  got = lab.evaluate(
      lambda student, teachers, memory, batch: method.objective_at(0)(
          student, teachers, memory,
          dataclasses.replace(batch, views=lambda i: {1: other.image}[i])),
      student, {}, {}, batch)
  adv = np.concatenate([
      lab.attacked(student, which, start='uniform') for which in (batch, other)])
  y = np.asarray(batch.label)
  stats = lab.float64(student.variables['batch_stats'])

  def reference(params):
    z, after = lab.forward({'params': params, 'batch_stats': stats}, adv, train=True)
    one, two = z[:lab.B], z[lab.B:]
    return ((lab.ce(one, y) + lab.ce(two, y)) / 2 + s['weight'] * js(
        one / s['temperature'], two / s['temperature'], lab.softmax)), after

  params = lab.float64(student.variables['params'])
  loss, after = reference(params)
  np.testing.assert_allclose(got.loss, loss, rtol=1e-3)
  lab.assert_trees_close(
      got.grads, lab.numerical_gradient(lambda p: reference(p)[0].mean(), params),
      rtol=2e-3, atol=2e-4)
  lab.assert_trees_close(got.student['batch_stats'], after, rtol=1e-4, atol=1e-5)


def test_jensen_shannon_extremes(lab):
  far = jnp.asarray([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]])
  other = jnp.asarray([[-1e4, 1e4, 0.0], [0.0, 0.0, 0.0]])
  value = losses.jensen_shannon(far, other)
  np.testing.assert_allclose(value, [np.log(2), 0], rtol=1e-6)
  np.testing.assert_array_equal(value, losses.jensen_shannon(other, far))
  for argument in (0, 1):
    slope = jax.grad(lambda *both: losses.jensen_shannon(*both).sum(), argument)(
        far, other)
    assert np.isfinite(slope).all()
  with pytest.raises(ValueError, match='must match'):
    losses.jensen_shannon(far, other[:1])
  with pytest.raises(ValueError, match='temperature must be > 0'):
    losses.jensen_shannon(far, other, temperature=0)


NAMES = ('iad', 'adaad', 'adaiad', 'dgad', 'kdiga', 'consistency')


@pytest.mark.parametrize('name', ('iad', 'kdiga', 'dgad'))
def test_finite_where_everything_is_saturated(lab, name):
  """Logits of thousands; for KDIGA also a student that is its teacher."""
  method = distill.make(name, {}, threat=lab.THREAT, epochs=10)
  student = lab.bound('linear', 1, 3000.0)
  for teacher in (lab.bound('linear', 2, 3000.0), student):
    got = lab.evaluate(
        method.objective_at(9), student, {'teacher': teacher}, {}, lab.batch_of(3))
    assert np.isfinite(got.loss).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got.grads))


@pytest.mark.parametrize('name', NAMES)
def test_training_steps_learn(lab, name):
  """The compiled step of the library, twelve times on the same images."""
  metrics = twelve_steps(lab, name)
  loss = np.asarray(metrics['loss'])
  assert np.isfinite(loss).all() and loss[-1] < 0.9 * loss[0]
  assert np.isfinite(metrics['grad_norm']).all()


@pytest.mark.parametrize('name', (
    'consistency', pytest.param('kdiga', marks=pytest.mark.slow)))
def test_a_mesh_computes_the_same(lab, name):
  """Two devices share a batch that is doubled, or differentiated twice."""
  one, other = (twelve_steps(lab, name, parallel.make_mesh(n)) for n in (1, 2))
  np.testing.assert_allclose(one['loss'], other['loss'], rtol=2e-3)


def twelve_steps(lab, name, mesh=None):
  method = distill.make(name, {}, threat=lab.THREAT, epochs=10)
  network = lab.NETWORKS['normed']
  teacher = lab.bound('normed', 2, 2.0)
  mine = {role: teacher.network for role in method.roles}
  random = np.random.default_rng(0)
  data = {'image': random.integers(0, 256, (16, *lab.SHAPE), dtype=np.uint8)}
  data['label'] = np.argmax(teacher.predict(data['image'] / np.float32(255)), axis=1)
  tx = optax.sgd(0.1)
  scan = step.make_scan(step.make_train_step(
      method.objective_at(9), Batch, network, mine, tx, steps_per_epoch=12,
      augment=lambda key, image: image + jax.random.randint(
          key, (), 0, 2).astype(image.dtype)))
  start = state.create(network, lab.SHAPE, tx, {}, init_key=jax.random.key(1),
                       train_key=jax.random.key(2))
  order = np.tile(np.arange(16, dtype=np.int32), (12, 1))
  frozen = {role: teacher.variables for role in mine}
  start, frozen, data = (parallel.replicate(t, mesh) for t in (start, frozen, data))
  compiled = (parallel.compile_scan(scan, mesh) if mesh else
              jax.jit(scan, compiler_options=lab.QUICK))
  after, metrics = compiled(start, frozen, data, order)
  assert int(after.step) == 12
  return metrics
