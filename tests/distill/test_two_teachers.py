"""MTARD, B-MTARD and CIARD, several steps in a row, against float64 NumPy.

`Reference` is written from the equations of the papers: loss weights,
temperatures, push term, SGD on the robust teacher with momentum, weight decay
and learning rate, BatchNorm statistics of all networks.
"""

import jax
import numpy as np
import pytest

from rkd_jax import distill

EPOCHS = 300
# Steps taken at these epochs: all phases and all falls of the step sizes.
EPOCHS_SEEN = (0, 10, 49, 50, 175, 214, 215, 260, 299)


class Reference:
  """One student's teachers and the state of the balance, in float64."""

  def __init__(self, lab, settings, teachers):
    self.lab, self.s = lab, settings
    self.clean = lab.float64(teachers['clean'].variables)
    self.robust = lab.float64(teachers['robust'].variables)
    self.buffer = jax.tree.map(np.zeros_like, self.robust['params'])
    self.w_n, self.first = 0.5, None
    self.tau = {'robust': 1.0, 'clean': 1.0}

  def terms(self, params, stats, x_adv, x, r, n, n_adv, y):
    """L1, L2 [B], L3 [B], who is fooled, the student's statistics after."""
    lab, s = self.lab, self.s
    za, stats = lab.forward({'params': params, 'batch_stats': stats}, x_adv,
                            train=True)
    z, stats = lab.forward({'params': params, 'batch_stats': stats}, x,
                           train=True)
    scale = s['kl_scale'] / lab.K
    l1 = scale * lab.kl(r / self.tau['robust'], za)
    l2 = scale * lab.kl(n / self.tau['clean'], z)
    l3 = scale * lab.kl(n_adv, za / s.get('push_temperature', 1))
    return l1, l2, l3, n_adv.argmax(1) != y, stats

  def step(self, student, x_adv, x, y, epoch):
    """(loss of the batch as a function of params, its statistics)."""
    lab, s = self.lab, self.s
    robust = self.robust
    r, robust_stats = lab.forward(
        robust, x_adv, train=s.get('teacher_batch_norm') == 'train')
    n, _ = lab.forward(self.clean, x)
    n_adv, _ = lab.forward(self.clean, x_adv)
    fall = 0.1 ** sum(epoch >= e for e in (215, 260, 285))

    args = (lab.float64(student['batch_stats']), x_adv, x, r, n, n_adv, y)
    before = dict(self.tau)
    l1, l2, l3, fooled, stats = self.terms(
        lab.float64(student['params']), *args)
    m1, m2 = l1.mean(), l2.mean()
    self.first = self.first or (m1, m2)
    r_a, r_n = m1 / self.first[0], m2 / self.first[1]
    self.w_n -= fall * s['weight_step'] * (self.w_n - r_n / (r_a + r_n))
    w_a, w_n = 1 - self.w_n, self.w_n
    if s.get('weights') == 'fixed':
      w_a, w_n = s['weight_adv'], s['weight_clean']
    k = 0.0
    if s.get('push') and fooled.any():
      decade = lambda v: np.floor(np.log10(v))
      k = 10.0 ** (min(decade(m1), decade(m2)) - decade(l3[fooled].mean()))

    if s.get('retrain') and epoch >= 50:
      self.retrain(x_adv, y, epoch)
    if s.get('teacher_batch_norm') == 'train':
      self.robust = {**self.robust, 'batch_stats': robust_stats}

    def loss(params):
      keep, self.tau = self.tau, before
      l1, l2, l3, fooled, _ = self.terms(params, *args)
      self.tau = keep
      value = w_a * l1.mean() + w_n * l2.mean()
      return value - (k * l3[fooled].mean() if fooled.any() and k else 0)

    if s.get('temperatures', True) and 'temperature_step' in s:
      h_r = lab.entropy(r / self.tau['robust']).mean()
      h_n = lab.entropy(n / self.tau['clean']).mean()
      move = fall * s['temperature_step']
      bounds = s['temperature_min'], s['temperature_max']
      self.tau = {
          'robust': np.clip(before['robust'] - move * np.sign(h_r / h_n - 1),
                            *bounds),
          'clean': np.clip(before['clean'] - move * np.sign(h_n / h_r - 1),
                           *bounds)}
    return loss, stats, k

  def retrain(self, x_adv, y, epoch):
    """SGD as torch has it, on CE(R(x'), y)."""
    lab, s = self.lab, self.s
    train = s['teacher_batch_norm'] == 'train'
    stats = self.robust['batch_stats']
    gradient = lab.numerical_gradient(
        lambda p: lab.ce(lab.forward({'params': p, 'batch_stats': stats}, x_adv,
                                     train=train)[0], y).mean(),
        self.robust['params'])
    p = (epoch - 50) / 250
    rate = s['retrain_learning_rate'] * (
        0.5 + 0.5 * np.cos(np.pi * p)) * np.exp(-0.01 * p**2)
    self.buffer = jax.tree.map(
        lambda b, g, w: s['retrain_momentum'] * b + g
        + s['retrain_weight_decay'] * w,
        self.buffer, gradient, self.robust['params'])
    self.robust = {**self.robust, 'params': jax.tree.map(
        lambda w, b: w - rate * b, self.robust['params'], self.buffer)}


# Larger steps than the published ones, so that 9 of them show.
FAST = {'weight_step': 0.3, 'temperature_step': 0.4}
RETRAIN = {'retrain_learning_rate': 0.5, 'retrain_momentum': 0.6,
           'retrain_weight_decay': 0.05}
CASES = {
    'mtard': ('mtard', {'weight_step': 0.3, 'kl_scale': 10.0}),
    'b_mtard': ('b_mtard', {**FAST, 'temperature_max': 1.5}),
    'ciard': ('ciard', {**FAST, **RETRAIN}),
    'ciard, public code': ('ciard', {
        **FAST, **RETRAIN, 'weights': 'fixed', 'kl_scale': 10.0}),
    'ciard, own fixed weights, teacher in eval mode': ('ciard', {
        **FAST, **RETRAIN, 'weights': 'fixed', 'weight_adv': 0.7,
        'weight_clean': 0.2, 'teacher_batch_norm': 'eval',
        'push_temperature': 2.0}),
    'ciard, no retraining': ('ciard', {**FAST, 'retrain': False}),
    'ciard, no push, no temperatures': ('ciard', {
        **FAST, **RETRAIN, 'push': False, 'temperatures': False}),
    'ciard, all off': ('ciard', {
        'weights': 'fixed', 'push': False, 'temperatures': False,
        'retrain': False, 'teacher_batch_norm': 'eval'}),
}


SLOW = ('ciard, public code', 'ciard, no retraining', 'ciard, all off')


@pytest.mark.parametrize('case', [
    pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW))
    for case in CASES])
def test_steps_in_a_row(lab, case):
  name, changes = CASES[case]
  settings = {**distill.defaults(name), **changes}
  method = distill.make(name, changes, threat=lab.THREAT, epochs=EPOCHS)
  teachers = {'clean': lab.bound('normed', 11, 1.5),
              'robust': lab.bound('normed', 12)}
  student = lab.bound('normed', 13)
  programs = {start: lab.compiled(objective, student, teachers)
              for start, objective in method.phases}
  memory = method.init_memory(teachers)
  reference = Reference(lab, settings, teachers)
  pushed = 0
  for i, epoch in enumerate(EPOCHS_SEEN):
    student = lab.bound('normed', 20 + i)  # As if its own optimiser moved it.
    batch = lab.batch_of(i, step=i, epoch=epoch)
    x_adv = lab.attacked(student, batch, start='gaussian')
    program = programs[max(s for s in programs if s <= epoch)]
    got = program(student, teachers, memory, batch)
    loss, stats, k = reference.step(
        student.variables, x_adv, batch.image, np.asarray(batch.label), epoch)
    memory = got.memory

    params = lab.float64(student.variables['params'])
    np.testing.assert_allclose(
        got.loss.mean(), loss(params), rtol=1e-3, atol=1e-5)
    if epoch in (10, 175, 299):
      lab.assert_trees_close(
          got.grads, lab.numerical_gradient(loss, params), rtol=5e-3, atol=1e-4)
    lab.assert_trees_close(
        got.student['batch_stats'], stats, rtol=1e-4, atol=1e-5)
    if 'weights' in memory:
      np.testing.assert_allclose(
          memory['weights']['weight_clean'], reference.w_n, rtol=1e-4)
    if 'temperatures' in memory:
      lab.assert_trees_close(
          dict(memory['temperatures']), reference.tau, rtol=1e-5)
    if 'robust' in memory:
      lab.assert_trees_close(
          memory['robust'], reference.robust, rtol=1e-3, atol=1e-4)
    if settings.get('push'):
      np.testing.assert_allclose(got.metrics['push_scale'], k, rtol=1e-5)
      pushed += k > 0

  assert method.retrained(memory) == (
      {'robust': memory['robust']} if 'robust' in memory else {})
  if 'optimizer' in memory:
    momentum, = jax.tree.leaves(
        memory['optimizer'],
        is_leaf=lambda node: isinstance(node, dict) and 'hidden' in node)
    lab.assert_trees_close(momentum, reference.buffer, rtol=1e-3, atol=1e-4)
  # The run has exercised what the case is about.
  if settings.get('push'):
    assert pushed
  if settings.get('retrain'):
    assert ('robust' in memory) and ('optimizer' in memory)
  if 'temperatures' in memory:
    assert max(reference.tau.values()) > 1.2
