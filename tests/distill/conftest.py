"""Two tiny networks, written twice (linen and float64 NumPy), and the algebra
of the methods in float64, from the papers' equations."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import attacks
from rkd_jax.distill.method import Batch, weighted_mean
from rkd_jax.models.network import BoundNetwork, Network

SHAPE, B, K = (2, 2, 1), 6, 3
THREAT = {'norm': 'linf', 'eps': 0.1, 'step_size': 0.04, 'steps': 3}


class Linear(nn.Module):
  @nn.compact
  def __call__(self, x, train=False, tap=None):
    return nn.Dense(K, name='out')(x.reshape(len(x), -1))


class Normed(nn.Module):
  """Dense, BatchNorm, tanh, Dense."""

  @nn.compact
  def __call__(self, x, train=False, tap=None):
    x = nn.Dense(4, name='hidden')(x.reshape(len(x), -1))
    x = nn.BatchNorm(use_running_average=not train, momentum=0.9,
                     use_fast_variance=False, name='bn')(x)
    return nn.Dense(K, name='out')(jnp.tanh(x))


NETWORKS = {'linear': Network(Linear()), 'normed': Network(Normed())}


def forward(variables, x, train=False):
  """Logits and running statistics in float64, of either network."""
  p, stats = variables['params'], variables['batch_stats']
  x = np.asarray(x, np.float64).reshape(len(x), -1)
  if 'hidden' in p:
    x = x @ p['hidden']['kernel'] + p['hidden']['bias']
    mean, var = stats['bn']['mean'], stats['bn']['var']
    if train:
      mean, var = x.mean(0), x.var(0)
      stats = {'bn': {'mean': 0.9 * stats['bn']['mean'] + 0.1 * mean,
                      'var': 0.9 * stats['bn']['var'] + 0.1 * var}}
    x = (x - mean) / np.sqrt(var + 1e-5) * p['bn']['scale'] + p['bn']['bias']
    x = np.tanh(x)
  return x @ p['out']['kernel'] + p['out']['bias'], stats


def softmax(z):
  p = np.exp(z - z.max(-1, keepdims=True))
  return p / p.sum(-1, keepdims=True)


def ce(z, y):
  return -np.log(softmax(z)[np.arange(len(y)), y])


def kl(p_logits, q_logits):
  """KL(p || q) over classes; the first argument is the target."""
  p, q = softmax(p_logits), softmax(q_logits)
  return (p * np.log(p / q)).sum(-1)


def entropy(z):
  p = softmax(z)
  return -(p * np.log(p)).sum(-1)


def float64(tree):
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def numerical_gradient(fn, params, step=1e-5):
  """Central differences of a scalar function of a nested dict of arrays."""
  params = float64(params)
  leaves, treedef = jax.tree.flatten(params)
  gradients = []
  for leaf in leaves:
    gradient = np.zeros_like(leaf)
    for i in np.ndindex(leaf.shape):
      kept = leaf[i]
      leaf[i] = kept + step
      up = fn(params)
      leaf[i] = kept - step
      down = fn(params)
      leaf[i] = kept
      gradient[i] = (up - down) / (2 * step)
    gradients.append(gradient)
  return jax.tree.unflatten(treedef, gradients)


@functools.cache
def _shapes(kind):
  return jax.eval_shape(
      lambda key: NETWORKS[kind].init(key, SHAPE), jax.random.key(0))


def variables_of(kind, seed, scale=1.0):
  """Random variables, running statistics included; float32."""
  shapes = _shapes(kind)
  rng = np.random.default_rng(seed)
  draw = lambda s: np.float32(scale * rng.normal(size=s.shape))
  variables = jax.tree.map(draw, shapes)
  if variables['batch_stats']:
    stats = variables['batch_stats']['bn']
    stats['var'] = 0.5 + np.abs(stats['var'])
  return jax.tree.map(jnp.asarray, variables)


def bound(kind, seed, scale=1.0):
  return BoundNetwork(NETWORKS[kind], variables_of(kind, seed, scale))


def batch_of(seed, step=0, epoch=0):
  """A batch whose images are away from 0 and 1, so that no pixel is clipped."""
  rng = np.random.default_rng(100 + seed)
  return Batch(
      image=jnp.asarray(rng.uniform(0.2, 0.8, (B, *SHAPE)), jnp.float32),
      label=jnp.asarray(rng.integers(0, K, B), jnp.int32),
      key=jax.random.split(jax.random.key(seed), B),
      step=jnp.int32(step), epoch=jnp.int32(epoch), progress=jnp.float32(epoch),
      mean=weighted_mean)


# The programs are tiny: compiling them well takes longer than running them.
QUICK = {'xla_backend_optimization_level': 0,
         'xla_llvm_disable_expensive_passes': True}


def compiled(objective, student, teachers, mean=weighted_mean):
  """`evaluate(student, teachers, memory, batch)` of an objective, one program.

  Only the networks of `student` and `teachers` matter here. The result has the
  gradient of the mean loss beside what is in an Outcome.
  """
  networks = {role: teacher.network for role, teacher in teachers.items()}
  network = student.network

  def program(variables, teacher_variables, memory, *batch):
    bounds = {role: BoundNetwork(networks[role], teacher_variables[role])
              for role in networks}

    def mean_loss(params):
      out = objective(BoundNetwork(network, {**variables, 'params': params}),
                      bounds, memory, Batch(*batch, mean))
      return jnp.mean(out.loss), (
          out.loss, out.student.variables, out.memory, dict(out.metrics))
    return jax.grad(mean_loss, has_aux=True)(variables['params'])

  program = jax.jit(program, compiler_options=QUICK)

  def evaluate(student, teachers, memory, batch):
    grads, (loss, after, memory, metrics) = program(
        student.variables,
        {role: teacher.variables for role, teacher in teachers.items()}, memory,
        batch.image, batch.label, batch.key, batch.step, batch.epoch,
        batch.progress)
    return types.SimpleNamespace(
        loss=loss, grads=grads, student=after, memory=memory, metrics=metrics)

  return evaluate


def evaluate(objective, student, teachers, memory, batch):
  """One evaluation of `compiled`."""
  return compiled(objective, student, teachers)(student, teachers, memory, batch)


def attacked(student, batch, *, start, reference=None):
  """What the method's inner maximisation should have found.

  The attack is on CE, or on the KL from the logits `reference`.
  """
  return _attack(student.network, start)(
      student.variables, batch.image, batch.label, batch.key, reference)


@functools.cache
def _attack(network, start):
  def run(variables, image, label, key, reference):
    return attacks.pgd(
        lambda x: network.predict(variables, x), image, label, key=key,
        start=start, start_scale=0.001 if start == 'gaussian' else None,
        objective='ce' if reference is None else attacks.kl_to(reference),
        **THREAT)
  return jax.jit(run, compiler_options=QUICK)


def assert_trees_close(got, wanted, **tolerance):
  assert jax.tree.structure(got) == jax.tree.structure(wanted)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, wanted)


@pytest.fixture(scope='session')
def lab():
  """Everything above."""
  return types.SimpleNamespace(**{
      name: value for name, value in globals().items()
      if not name.startswith('_')})
