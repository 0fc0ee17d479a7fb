"""FD and CFD against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import attacks, bounds, distill
from rkd_jax.bounds import joint
from rkd_jax.errors import ConfigError


def worst_points(lab, student, teacher, batch, temperature):
  """x' by an attack on both networks at once, written without the library's losses."""
  def divergence(both):
    s, t = (jax.nn.log_softmax(z / temperature) for z in both)
    return jnp.sum(jnp.exp(t) * (t - s), axis=1)

  return attacks.pgd(
      lambda x: (student.predict(x), teacher.predict(x)), batch.image, None,
      key=batch.key, eps=0.1, step_size=0.04, steps=3, objective=divergence,
      start='gaussian', start_scale=0.001)


@pytest.mark.parametrize('changes', [{}, {'weight_adv': 0.3, 'temperature': 2.0}])
def test_fd(lab, changes):
  method = distill.make('fd', changes, threat=lab.THREAT, epochs=10)
  settings = {**distill.defaults('fd'), **changes}
  a, temperature = settings['weight_adv'], settings['temperature']
  student, teacher, batch = lab.bound('linear', 1), lab.bound('normed', 2, 2.0), (
      lab.batch_of(3))
  got = lab.evaluate(method.objective_at(0), student, {'teacher': teacher}, {}, batch)
  points = worst_points(lab, student, teacher, batch, temperature)
  assert np.abs(points - batch.image).max() > 0.09
  variables = lab.float64(teacher.variables)
  targets = [lab.forward(variables, x)[0] / temperature for x in (points, batch.image)]

  def reference(params):
    logits = [lab.forward({'params': params, 'batch_stats': {}}, x)[0] / temperature
              for x in (points, batch.image)]
    worst, clean = (lab.kl(t, s) for t, s in zip(targets, logits))
    return temperature**2 * (a * worst + (1 - a) * clean)

  params = lab.float64(student.variables['params'])
  np.testing.assert_allclose(got.loss, reference(params), rtol=1e-3, atol=1e-5)
  lab.assert_trees_close(got.grads, lab.numerical_gradient(
      lambda p: reference(p).mean(), params), rtol=2e-3, atol=2e-4)


def test_cfd_adds_a_bound_of_the_log_odds(lab):
  """For linear networks interval bounds of T - S are exact: |W_T - W_S| eps."""
  threat = {**lab.THREAT, 'steps': 0}
  student, teacher, batch = lab.bound('linear', 1), lab.bound('linear', 2), (
      lab.batch_of(3))
  losses = {name: lab.evaluate(
      distill.make(name, changes, threat=threat, epochs=10).objective_at(0), student,
      {'teacher': teacher}, {}, batch).loss
      for name, changes in (('fd', {}), ('cfd', {'kappa': 0.5}))}
  kernel, bias = (np.asarray(teacher.variables['params']['out'][k], np.float64)
                  - np.asarray(student.variables['params']['out'][k], np.float64)
                  for k in ('kernel', 'bias'))
  center = np.asarray(batch.image, np.float64).reshape(lab.B, -1) @ kernel + bias
  mean = lambda a: a - a.mean(-1, keepdims=True)
  value, radius = mean(center), 0.1 * np.abs(mean(kernel)).sum(0)
  high, low = value + radius, value - radius
  gaps = np.maximum(high.max(1, keepdims=True) - low, high - low.min(1, keepdims=True))
  added = 0.5 * (-np.log(1 - np.tanh(gaps / 4))).mean(1)
  np.testing.assert_allclose(losses['cfd'] - losses['fd'], added, rtol=1e-4)


def test_logit_gaps_bound_the_disagreement(lab):
  student, teacher = lab.bound('normed', 1), lab.bound('normed', 2)
  images = lab.batch_of(3).image
  ball = bounds.linf_ball(images, 0.2, lower=0.0, upper=1.0)
  gaps = joint.logit_gaps(teacher.predict, student.predict, ball, bounds.crown_ibp)
  noise = np.random.default_rng(0).uniform(-0.2, 0.2, (500, *images.shape))
  points = np.clip(images + noise, 0, 1).reshape(-1, *images.shape[1:])
  p, q = (lab.softmax(lab.forward(lab.float64(n.variables), points)[0])
          for n in (teacher, student))
  apart = np.abs(p - q).reshape(500, *gaps.shape)
  assert (apart <= np.tanh(np.asarray(gaps, np.float64) / 4)).all()


def test_bad_settings(lab):
  for name, changes, text in (('fd', {'temperature': 0.0}, 'temperature'),
                              ('fd', {'weight_adv': 1.5}, 'weight_adv'),
                              ('cfd', {'kappa': -1.0}, 'kappa'),
                              ('cfd', {'bound': 'crown'}, 'crown_ibp')):
    with pytest.raises(ConfigError, match=text):
      distill.make(name, changes, threat=lab.THREAT, epochs=10)
  with pytest.raises(ConfigError, match='BatchNorm'):
    distill.make('cfd', {}, threat=lab.THREAT, epochs=10).init_student(
        jax.random.key(0), lab.bound('normed', 1).variables)
