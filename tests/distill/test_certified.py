"""Certified training: loss and gradient against float64 NumPy interval arithmetic,
schedules, initialisation, and that a few steps help."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rkd_jax import bounds, distill, models
from rkd_jax import config as configuration
from rkd_jax.distill import certified, ibp_warmup
from rkd_jax.distill.method import Batch, weighted_mean
from rkd_jax.errors import ConfigError
from rkd_jax.models.network import BoundNetwork, Network

SHAPE, B, K, EPS = (4, 4, 1), 8, 3, 0.07
THREAT = {'norm': 'linf', 'eps': EPS, 'step_size': 0.01, 'steps': 1}
EPOCHS, WARMUP = 10, 0.4
MLP = Network(models.create('mlp_6_5', num_classes=K))
CNN = Network(models.create('cnn_2', num_classes=K))


def make(epochs=EPOCHS, warmup=0.0, **settings):
  return distill.make('certified', settings, epochs=epochs,
                      threat={**THREAT, 'eps_warmup': warmup})


def batch_of(progress=0.0, size=B):
  """Images that touch 0 and 1, so that the ball is cut; every class occurs."""
  rng = np.random.default_rng(3)
  image = np.clip(rng.uniform(-0.2, 1.2, (size, *SHAPE)), 0, 1)
  return Batch(
      image=jnp.asarray(image, jnp.float32), label=jnp.arange(size) % K,
      key=jax.random.split(jax.random.key(0), size), step=jnp.int32(0),
      epoch=jnp.int32(progress), progress=jnp.float32(progress), mean=weighted_mean)


def student_of(network, seed=0):
  """With kernels of the network's size and biases around 0.1 in size."""
  shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), SHAPE))
  rng = np.random.default_rng(seed)
  draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * (
      leaf.size / leaf.shape[-1])**-0.5 if leaf.ndim > 1 else
      0.1 * rng.normal(size=leaf.shape), jnp.float32)
  return BoundNetwork(network, jax.tree.map(draw, shapes))


def matrices(params):
  """The layers as float64 [(W, b)] on flattened images, straight from definitions."""
  layers, shape = [], SHAPE
  for name in sorted(params, key=lambda n: (n == 'head', n)):
    kernel, bias = (np.asarray(params[name][k], np.float64) for k in ('kernel', 'bias'))
    if kernel.ndim == 4:  # 4 x 4, stride 2, one zero on each side.
      size = shape[0] // 2
      dense = np.zeros((math.prod(shape), size, size, kernel.shape[3]))
      dense = dense.reshape(*shape, size, size, kernel.shape[3])
      for i, j, p, q in np.ndindex(size, size, 4, 4):
        y, x = 2 * i + p - 1, 2 * j + q - 1
        if 0 <= y < shape[0] and 0 <= x < shape[1]:
          dense[y, x, :, i, j] += kernel[p, q]
      bias = np.tile(bias, size * size)
      kernel = dense.reshape(math.prod(shape), -1)
      shape = (size, size, dense.shape[-1])
    layers.append((kernel, bias))
  return layers


def intervals(layers, image, eps):
  """[(lower, upper)] of the input and before each ReLU, then of the last ReLU."""
  image = np.asarray(image, np.float64).reshape(len(image), -1)
  low, high = np.maximum(image - eps, 0), np.minimum(image + eps, 1)
  found = [(low, high)]
  for weight, bias in layers[:-1]:
    plus, minus = np.maximum(weight, 0), np.minimum(weight, 0)
    low, high = (low @ plus + high @ minus + bias, high @ plus + low @ minus + bias)
    found.append((low, high))
    low, high = np.maximum(low, 0), np.maximum(high, 0)
  return found, (low, high)


def worst_loss(layers, image, label, eps):
  """CE of the worst-case logits, the last layer merged with the margins: [B]."""
  low, high = intervals(layers, image, eps)[1]
  weight, bias = layers[-1]
  loss = []
  for i, y in enumerate(np.asarray(label)):
    terms = 1.0  # exp(0), the label's own.
    for j in range(K):
      if j != y:
        row = weight[:, y] - weight[:, j]
        margin = (np.where(row > 0, low[i] * row, high[i] * row).sum()
                  + bias[y] - bias[j])
        terms += np.exp(-margin)
    loss.append(np.log(terms))
  return np.asarray(loss)


@pytest.fixture
def forward(lab):
  """`forward(objective, student, batch)` -> (loss [B], metrics), compiled once each."""
  programs = {}

  def run(objective, student, batch):
    def program(variables, **batch):
      out = objective(BoundNetwork(student.network, variables), {}, {},
                      Batch(**batch, mean=weighted_mean))
      return out.loss, dict(out.metrics)

    if objective not in programs:
      programs[objective] = jax.jit(program, compiler_options=lab.QUICK)
    fields = {k: v for k, v in vars(batch).items() if k not in ('mean', 'views', 'once')}
    return programs[objective](student.variables, **fields)

  return run


@pytest.mark.parametrize('network', [MLP, CNN])
def test_loss_and_gradient_against_numpy_intervals(lab, network):
  student, batch = student_of(network), batch_of()
  got = lab.evaluate(make(kappa_end=0.3).objective_at(0), student, {}, {}, batch)

  def reference(params):
    layers = matrices(params)
    return (0.3 * worst_loss(layers, batch.image, batch.label, 0.0)
            + 0.7 * worst_loss(layers, batch.image, batch.label, EPS))

  params = lab.float64(student.variables['params'])
  np.testing.assert_allclose(got.loss, reference(params), rtol=1e-4)
  lab.assert_trees_close(
      got.grads,
      lab.numerical_gradient(lambda p: reference(p).mean(), params),
      rtol=1e-2, atol=1e-4)


def test_worst_logits():
  labels = jnp.asarray([1, 0, 2])
  margins = jnp.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
  np.testing.assert_array_equal(
      certified.worst_logits(margins, labels),
      [[-1, 0, -2], [0, -3, -4], [-5, -6, 0]])


def test_eps_and_kappa_go_from_start_to_end(forward):
  student = student_of(MLP)
  method = make(warmup=WARMUP, kappa_start=0.8, kappa_end=0.5, regularizer=0.0,
                ramp='linear')
  assert [start for start, _ in method.phases] == [0, 4]
  layers = matrices(student.variables['params'])
  for progress, share in ((0.0, 0.0), (1.0, 0.25), (3.0, 0.75), (4.0, 1), (9.0, 1)):
    batch = batch_of(progress)
    loss, metrics = forward(method.objective_at(int(progress)), student, batch)
    eps, kappa = EPS * share, 0.8 - 0.3 * share
    worst = worst_loss(layers, batch.image, batch.label, eps)
    clean = worst_loss(layers, batch.image, batch.label, 0.0)
    np.testing.assert_allclose(metrics['eps'], eps, rtol=1e-6)
    np.testing.assert_allclose(metrics['loss_worst'], worst, rtol=1e-4)
    np.testing.assert_allclose(loss, kappa * clean + (1 - kappa) * worst, rtol=1e-4)


def test_mixture(lab, forward):
  """beta 0 is IBP, which NumPy knows; beta 1 is CROWN-IBP, never above it; and over
  the warm-up beta falls as eps grows."""
  student, batch = student_of(MLP), batch_of()

  def worst_at(eps, beta):
    ball = bounds.linf_ball(batch.image, eps, lower=0.0, upper=1.0)
    margins = certified.mixed_margins(
        student.predict, ball, bounds.margins(batch.label, K), bound='crown_ibp',
        beta=beta)
    return jnp.log(1 + jnp.exp(-margins).sum(1))

  worst_at = jax.jit(worst_at, compiler_options=lab.QUICK)
  worst = {beta: worst_at(EPS, beta) for beta in (0.0, 0.5, 1.0)}
  np.testing.assert_allclose(worst[0.0], worst_loss(
      matrices(student.variables['params']), batch.image, batch.label, EPS), rtol=1e-4)
  assert (worst[1.0] <= worst[0.0]).all() and (worst[1.0] < worst[0.0]).any()
  assert (worst[1.0] <= worst[0.5]).all() and (worst[0.5] <= worst[0.0]).all()

  method = make(warmup=WARMUP, bound='crown_ibp', beta_end=0.2, regularizer=0.0,
                ramp='linear')
  for share in (0.0, 0.25, 0.75):
    _, metrics = forward(method.objective_at(0), student, batch_of(4 * share))
    np.testing.assert_allclose(
        metrics['loss_worst'], worst_at(EPS * share, 1 - 0.8 * share), rtol=1e-4)


@pytest.mark.parametrize('share', [0.0, 0.1, 0.25, 0.6, 1.0])
def test_smooth_ramp(share):
  """auto_LiRPA's SmoothedScheduler(start=0, length=1000, mid=.25, beta=4)."""
  length, middle = 1000.0, 250.0
  scale = 1 / ((length - middle) * 4 * middle**3 + middle**4)
  step = share * length
  expected = (scale * step**4 if step < middle else scale * middle**4
              + (1 - scale * middle**4) * (step - middle) / (length - middle))
  assert certified.ramp_share('smooth', jnp.float32(share)) == pytest.approx(
      expected, abs=1e-6)
  assert certified.ramp_share('linear', share) == share


def test_initialisation(lab):
  network = Network(models.create('cnn_16_32', num_classes=10))
  methods = make(), make(init='network')

  def draw():
    fresh = network.init(jax.random.key(0), (28, 28, 1))
    return fresh, *(m.init_student(jax.random.key(1), fresh) for m in methods)

  fresh, drawn, kept = jax.jit(draw, compiler_options=lab.QUICK)()
  jax.tree.map(np.testing.assert_array_equal, kept, fresh)
  for name, fan_in in (('conv1', 16), ('conv2', 256), ('dense', 1568)):
    kernel = np.asarray(drawn['params'][name].pop('kernel'))
    del fresh['params'][name]['kernel']
    std = math.sqrt(2 * math.pi) / fan_in
    assert kernel.std() == pytest.approx(std, rel=5 / math.sqrt(kernel.size))
    assert abs(kernel.mean()) < 5 * std / math.sqrt(kernel.size)
  jax.tree.map(np.testing.assert_array_equal, drawn, fresh)


def test_warmup_terms_against_numpy(lab):
  student, batch, tau, eps = student_of(MLP), batch_of(), 0.9, 0.02
  ball = bounds.linf_ball(batch.image, eps, lower=0.0, upper=1.0)
  got = jax.jit(lambda: ibp_warmup.terms(
      student.predict, ball, weighted_mean, tau), compiler_options=lab.QUICK)()
  (low, high), *layers = intervals(
      matrices(student.variables['params']), batch.image, eps)[0]
  width, tightness, balance = (high - low).mean(), 0, 0
  for low, high in layers:
    tightness += max(0, tau - width / (high - low).mean()) / tau / len(layers)
    center = (low + high) / 2
    square = (center - center.mean())**2
    for on, off in ((center[low > 0].sum(), -center[high < 0].sum()),
                    (square[low > 0].sum(), square[high < 0].sum())):
      balance += max(0, tau - min(on, off) / max(on, off)) / tau / len(layers)
  assert tightness > 0 and balance > 0
  np.testing.assert_allclose(got, (tightness, balance), rtol=1e-3)


def test_warmup_terms_fade_with_eps(forward):
  student = student_of(MLP)
  method = make(warmup=WARMUP, regularizer=2.0, ramp='linear')
  for progress, weight in ((0.0, 2.0), (2.0, 1.0), (3.0, 0.5)):
    loss, metrics = forward(method.objective_at(0), student, batch_of(progress))
    share = progress / 4
    bare = share * (metrics['loss_worst'] - metrics['loss_clean'])
    terms = metrics['tightness'] + metrics['balance']
    np.testing.assert_allclose(
        loss, metrics['loss_clean'] + bare + weight * terms, rtol=1e-4)
  _, after = forward(method.objective_at(5), student, batch_of(5.0))
  assert 'tightness' not in after


def test_terms_are_finite_without_active_neurons(lab):
  student, batch = student_of(MLP), batch_of()
  ball = bounds.linf_ball(batch.image, EPS, lower=0.0, upper=1.0)

  def total(scale):
    params = jax.tree.map(lambda leaf: leaf * scale, student.variables['params'])
    fn = lambda x: MLP.predict({'params': params, 'batch_stats': {}}, x)
    return sum(ibp_warmup.terms(fn, ball, weighted_mean, 0.5))

  value, gradient = jax.jit(
      jax.value_and_grad(total), compiler_options=lab.QUICK)(0.0)
  assert np.isfinite(value) and np.isfinite(gradient)


def test_no_relu_is_refused():
  network = Network(Smooth())

  def run():
    student = BoundNetwork(network, network.init(jax.random.key(0), SHAPE))
    return make(warmup=WARMUP).objective_at(0)(student, {}, {}, batch_of()).loss

  with pytest.raises(ConfigError, match='no ReLU'):
    jax.eval_shape(run)


class Smooth(nn.Module):
  @nn.compact
  def __call__(self, x, train=False, tap=None):
    return nn.Dense(K)(jnp.tanh(nn.Dense(4)(x.reshape(len(x), -1))))


def test_a_few_steps_help(lab):
  method, batch, tx = make(), batch_of(), optax.adam(0.02)

  def step(carry, _):
    params, moments = carry

    def loss_fn(params):
      student = BoundNetwork(MLP, {'params': params, 'batch_stats': {}})
      return jnp.mean(method.objective_at(0)(student, {}, {}, batch).loss)

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, moments = tx.update(grads, moments)
    return (optax.apply_updates(params, updates), moments), loss

  def train(params):
    return jax.lax.scan(step, (params, tx.init(params)), length=40)[1]

  loss = jax.jit(train, compiler_options=lab.QUICK)(
      student_of(MLP).variables['params'])
  assert loss[-1] < 0.8 * loss[0] and np.isfinite(loss).all()


def test_registered_and_refused():
  config = configuration.resolve({'method': 'certified', 'certified': {
      'bound': 'crown_ibp', 'kappa_end': 0.5}})
  assert config.certified.kappa_end == 0.5 and config.certified.beta_end == 0
  for settings, words in (
      ({'bound': 'crown'}, "'crown'"), ({'init': 'he'}, "'he'"),
      ({'ramp': 'cosine'}, "'cosine'"), ({'kappa_end': 1.5}, 'kappa_end'),
      ({'beta_end': -0.1}, 'beta_end'), ({'regularizer': -1.0}, 'regularizer'),
      ({'tolerance': 0.0}, 'tolerance'), ({'kapa_end': 0.5}, 'kappa_end')):
    with pytest.raises(ConfigError, match=words):
      make(**settings)
  with pytest.raises(ConfigError, match='eps'):
    distill.make('certified', {}, threat={'eps': -0.1}, epochs=3)
  normed = Network(models.create('resnet20', num_classes=K))
  with pytest.raises(ConfigError, match='without it, such as cnn_16_32'):
    jax.eval_shape(lambda: make().init_student(
        jax.random.key(0), normed.init(jax.random.key(0), (32, 32, 3))))
