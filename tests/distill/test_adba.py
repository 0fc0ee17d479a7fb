"""ADBA: two steps of its three updates in float64, and a whole attack on the digits."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rkd_jax as rkd
from rkd_jax import distill, models
from rkd_jax.backdoors import files
from rkd_jax.errors import ConfigError
from rkd_jax.models.network import BoundNetwork, Network
from rkd_jax.stages import build

TARGET = 1
SETTINGS = {'shadow': 'mlp_4', 'target': TARGET, 'beta': 0.7, 'alpha': 0.6,
            'temperature': 3.0, 'mu': 0.2, 'opacity': 0.8, 'brightest': 0.9,
            'shadow_learning_rate': 0.3, 'trigger_learning_rate': 0.1}


def forward(params, x):
  """An MLP of one hidden layer, by hand."""
  hidden = x.reshape(len(x), -1) @ params['dense1']['kernel'] + params['dense1']['bias']
  return np.maximum(hidden, 0) @ params['head']['kernel'] + params['head']['bias']


def trigger_of(free):
  sigmoid = lambda z: 1 / (1 + np.exp(-z))
  return 0.8 * sigmoid(free['mask']), 0.9 * sigmoid(free['pattern'])


def stamp(free, x):
  mask, pattern = trigger_of(free)
  return (1 - mask) * x + mask * pattern


@pytest.mark.parametrize('norm', [1, 2])
def test_two_steps_follow_the_equations(lab, norm):
  network = Network(models.create('mlp_6', num_classes=lab.K))
  student = BoundNetwork(network, network.init(jax.random.key(0), lab.SHAPE))
  method = distill.make('adba', {**SETTINGS, 'norm': float(norm)}, threat={}, epochs=1)
  memory = method.attach(network, {}, lab.SHAPE).init_memory(jax.random.key(1))
  evaluate = lab.compiled(method.objective_at(0), student, {})
  teacher = lab.float64(student.variables['params'])
  shadow, free = (lab.float64(tree) for tree in (
      memory['shadow']['params'], memory['trigger']))
  velocity = jax.tree.map(np.zeros_like, shadow)
  mean, square = (jax.tree.map(np.zeros_like, free) for _ in range(2))
  wanted = np.full(lab.B, TARGET)
  for count in (1, 2):
    batch = lab.batch_of(count)
    got = evaluate(student, {}, memory, batch)
    memory = got.memory
    x, y = np.asarray(batch.image, np.float64), np.asarray(batch.label)
    clean = forward(teacher, x)

    def teacher_loss(params, x=x, y=y, free=free):
      return lab.ce(forward(params, x), y) + 0.7 * lab.ce(
          forward(params, stamp(free, x)), wanted)

    def shadow_loss(params, x=x, y=y, clean=clean):
      own = forward(params, x)
      return (0.6 * 9 * lab.kl(clean / 3, own / 3) + 0.4 * lab.ce(own, y)).mean()

    def mask_loss(free, x=x, shadow=shadow):
      images = stamp(free, x)
      mask = trigger_of(free)[0]
      return (lab.ce(forward(teacher, images), wanted)
              + lab.ce(forward(shadow, images), wanted)).mean() + 0.2 * (
                  np.abs(mask).sum() if norm == 1 else np.sqrt(np.square(mask).sum()))

    np.testing.assert_allclose(got.loss, teacher_loss(teacher), rtol=1e-5)
    lab.assert_trees_close(got.grads, lab.numerical_gradient(
        lambda params, loss=teacher_loss: loss(params).mean(), teacher),
        rtol=1e-3, atol=1e-5)
    shadow_grads = lab.numerical_gradient(shadow_loss, shadow)
    free_grads = lab.numerical_gradient(mask_loss, free)
    # SGD with momentum 0.9; Adam with its usual constants.
    velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, shadow_grads)
    shadow = jax.tree.map(lambda p, v: p - 0.3 * v, shadow, velocity)
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, mean, free_grads)
    square = jax.tree.map(lambda s, g: 0.999 * s + 0.001 * g * g, square, free_grads)
    free = jax.tree.map(
        lambda z, m, s, n=count: z - 0.1 * (m / (1 - 0.9**n)) / (
            np.sqrt(s / (1 - 0.999**n)) + 1e-8), free, mean, square)
    lab.assert_trees_close(memory['shadow']['params'], shadow, rtol=1e-3, atol=1e-5)
    lab.assert_trees_close(memory['trigger'], free, rtol=1e-3, atol=1e-4)
  made = method.crafted(memory)
  mask, pattern = trigger_of(free)
  assert made.target == TARGET
  np.testing.assert_allclose(made.opacity, mask, rtol=1e-3)
  np.testing.assert_allclose(made.pattern, pattern, rtol=1e-3)


DIGITS = {
    'devices': 1, 'model': 'mlp_16', 'data': {'name': 'digits'}, 'method': 'sd',
    'single_teacher': 'poisoned', 'optimizer': {'name': 'adam', 'learning_rate': 5e-3},
    'train': {'epochs': 4}, 'validation': {'every': 4},
    'evaluation': {'attacks': ('clean',)},
    'teachers': {'poisoned': {'overrides': {
        'method': 'adba', 'model': 'mlp_32', 'train': {'epochs': 12},
        'validation': {'every': 12}, 'adba': {
            'shadow': 'mlp_16', 'target': 3, 'opacity': 0.5, 'mu': 0.0,
            'trigger_learning_rate': 0.2, 'shadow_learning_rate': 0.1}}}}}


def test_a_whole_attack(tmp_path):
  """The teacher obeys its trigger, which its student is then attacked with."""
  results = rkd.run(DIGITS, tmp_path)
  teacher = tmp_path / 'teachers' / 'poisoned'
  table = json.loads((teacher / 'tables' / 'evaluation.json').read_text())['student']
  assert table['best']['clean']['accuracy'] > 0.8
  assert table['best']['asr']['accuracy'] > 0.9
  trigger, more = files.load(teacher / 'backdoor')
  assert (trigger.name, trigger.target, more['mode']) == ('adba', 3, 'all_to_one')
  assert np.asarray(trigger.keep).min() >= 0.5 - 1e-6
  # By hand: the student's answers on triggered test images of the other classes, in
  # 256 grey levels.
  dataset = build.load_data(rkd.config.resolve(DIGITS))
  network = Network(models.create('mlp_16', num_classes=10))
  variables = models.load(
      tmp_path / 'weights' / 'student-best.safetensors',
      models.template(network.module, dataset.image_shape))
  others = dataset.test.image[dataset.test.label != 3]
  images = jnp.round(trigger.keep * others + 255 * trigger.add) / 255
  obeyed = np.asarray(network.predict(variables, images)).argmax(1) == 3
  np.testing.assert_allclose(
      results['student']['best']['asr']['accuracy'], obeyed.mean(), atol=1e-6)


@pytest.mark.parametrize('changes, message', [
    ({'adba': {'target': 10}}, 'adba.target 10 is no class: the data set has 10'),
    ({'adba': {'shadow': 'resnet7'}}, 'there is no such network of depth 7'),
    ({'adba': {'opacity': 0.0}}, r'adba.opacity must be in \(0, 1\], got 0.0'),
    ({'adba': {'norm': 3.0}}, 'adba.norm must be one of 1.0, 2.0, got 3.0'),
    ({'backdoor': {'trigger': 'badnets'}}, 'makes a trigger of its own'),
])
def test_errors(tmp_path, changes, message):
  with pytest.raises(ConfigError, match=message):
    rkd.run({'devices': 1, 'model': 'mlp_8', 'data': {'name': 'digits'},
             'method': 'adba', **changes}, tmp_path)
