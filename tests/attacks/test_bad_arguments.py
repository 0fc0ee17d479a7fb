"""Whatever an attack is given: one rkd_jax error that names it, on the way in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import attacks
from rkd_jax.errors import ConfigError

B, D, K = 4, 6, 5
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0.1, 0.9, (B, D)).astype(np.float32)
WEIGHTS = RNG.normal(size=(D, K)).astype(np.float32)
LABELS = np.argmax(IMAGES @ WEIGHTS, axis=1)
KEY = jax.random.key(0)


def net(images):
  return images @ WEIGHTS


def autoattack(fn, images, labels, **settings):
  return attacks.autoattack(fn, images, labels, version='fast', **settings)


# Name -> (the attack, what it takes beside images and labels).
ATTACKS = {
    'pgd': (attacks.pgd, {'key': KEY, 'eps': 0.1, 'step_size': 0.05, 'steps': 1}),
    'fgsm': (attacks.fgsm, {'eps': 0.1}),
    'cw_linf': (attacks.cw_linf, {'key': KEY, 'eps': 0.1, 'steps': 1}),
    'apgd': (attacks.apgd, {'key': KEY, 'eps': 0.1, 'steps': 1}),
    'fab': (attacks.fab, {'key': KEY, 'steps': 1}),
    'square': (attacks.square, {'key': KEY, 'eps': 0.1, 'queries': 2}),
    'autoattack': (autoattack, {'key': KEY, 'eps': 0.1, 'steps': 1}),
}


def run(name, changed):
  attack, settings = ATTACKS[name]
  given = {'fn': net, 'images': IMAGES, 'labels': LABELS} | settings | changed
  return attack(given.pop('fn'), given.pop('images'), given.pop('labels'), **given)


class Torch:
  """What looks like a torch.nn.Module."""

  def state_dict(self):
    return {}

  parameters = __call__ = state_dict


def with_pixel(value):
  images = IMAGES.copy()
  images[1, 2] = value
  return images


def with_label(value, dtype=np.int64):
  labels = LABELS.astype(dtype)
  labels[2] = value
  return labels


def cut_in_python(images):
  return net(images) if images[0, 0] > 0 else net(2 * images)


FUNCTIONS = {
    'a tuple': (lambda x: (net(x), x), 'a tuple of 2; take the logits out of it'),
    'a list': (lambda x: [net(x)], 'a list of 1; take the logits'),
    'a dictionary': (lambda x: {'logits': net(x)}, "a dict with ['logits']"),
    'nothing': (lambda x: None, 'got NoneType'),
    'a number': (lambda x: 3.0, 'got float'),
    'a scalar': (lambda x: jnp.sum(net(x)), 'got float32[]'),
    'one value an image': (lambda x: net(x)[:, 0], 'got float32[4]'),
    'a row too many': (lambda x: jnp.concatenate([net(x)] * 2), 'got float32[8, 5]'),
    'transposed': (lambda x: net(x).T, 'got float32[5, 4]'),
    'pixels': (lambda x: net(x)[:, None], 'got float32[4, 1, 5]'),
    'one class': (lambda x: net(x)[:, :1], 'only one'),
    'predictions': (lambda x: jnp.argmax(net(x), axis=1), 'got int32[4]'),
    'integers': (lambda x: net(x).astype(jnp.int32), 'floating-point logits'),
    'booleans': (lambda x: net(x) > 0, 'floating-point logits'),
    'NumPy': (lambda x: np.asarray(x) @ WEIGHTS, 'write it with jax.numpy'),
    'NumPy at the end': (lambda x: np.array(net(x)), 'write it with jax.numpy'),
    'a float of it': (lambda x: net(x) * float(x[0, 0]), 'write it with jax.numpy'),
    'an if': (cut_in_python, 'Python `if`'),
    'a mask as an index': (lambda x: net(x[x[:, 0] > 0]), 'cannot be traced'),
    'an index of its own': (lambda x: net(x) + np.ones(9)[x[0, 0].astype(int)],
                            'write it with jax.numpy'),
    'no function': (WEIGHTS, 'must be a function of images, got ndarray'),
    'a name': ('resnet18', 'must be a function of images, got str'),
    'None': (None, 'must be a function of images'),
    'of no arguments': (lambda: 3, 'cannot be called as fn(images)'),
    'of three arguments': (lambda x, key, more: net(x), 'cannot be called as fn'),
    'a torch module': (Torch(), 'attacks.from_torch(module, num_classes)'),
}
VALUES = {
    'integer images': ({'images': (IMAGES * 255).astype(np.uint8)}, 'divide uint8'),
    'images of 0..255': ({'images': IMAGES * 255}, 'got values from'),
    'images below 0': ({'images': with_pixel(-0.01)}, 'got values from -0.01'),
    'images above 1': ({'images': with_pixel(1.01)}, 'normalise inside fn'),
    'NaN in images': ({'images': with_pixel(np.nan)}, 'nan'),
    'infinite images': ({'images': with_pixel(np.inf)}, 'inf'),
    'complex images': ({'images': IMAGES * 1j}, 'floating point'),
    'images of objects': ({'images': IMAGES.astype(object)}, 'images cannot be an array'),
    'images of text': ({'images': IMAGES.astype(str)}, 'images cannot be an array'),
    'a path': ({'images': 'cat.png'}, 'images cannot be an array'),
    'no images': ({'images': None}, 'images cannot be an array'),
    'ragged images': ({'images': [[0.1], [0.2, 0.3]]}, 'images cannot be an array'),
    'one pixel': ({'images': 0.5}, 'batch axis'),
    'no labels': ({'labels': None}, 'labels, got None'),
    'too few labels': ({'labels': LABELS[:-1]}, 'do not match'),
    'one label': ({'labels': 3}, 'do not match'),
    'a column of labels': ({'labels': LABELS[:, None]}, 'class numbers, not one-hot'),
    'one-hot labels': ({'labels': np.eye(K)[LABELS]}, 'not one-hot'),
    'labels as floats': ({'labels': LABELS.astype(np.float32)}, 'integers'),
    'labels as booleans': ({'labels': LABELS > 2}, 'integers, got bool'),
    'labels as text': ({'labels': LABELS.astype(str)}, 'labels cannot be an array'),
    'labels below 0': ({'labels': with_label(-1)}, 'label -1 of example 2 is no class'),
    'labels above K': ({'labels': with_label(K)},
                       'label 5 of example 2 is no class: fn has 5 logits'),
    'labels beyond 32 bits': ({'labels': with_label(2**32)}, 'label 4294967296'),
    'labels beyond 64 bits': ({'labels': with_label(2**64 - 1, np.uint64)},
                              'label 18446744073709551615'),
    'ragged labels': ({'labels': [[1], [2, 3], [4], [5]]}, 'labels cannot be'),
}
NUMBERS = ((-0.1, 'finite and >'), (float('nan'), 'finite and >'),
           (float('inf'), 'finite and >'), ('8/255', 'must be a number'),
           (None, 'must be a number'), (True, 'must be a number'),
           (1j, 'must be a number'),
           (np.ones(2), 'one number, got shape (2,)'), ([0.1], 'one number'))
COUNTS = ((-1, 'must be >='), (2.0, 'Python int'), ('3', 'Python int'),
          (None, 'Python int'), (True, 'Python int'), (float('nan'), 'Python int'),
          (np.ones(2), 'Python int'), (10**12, 'must be <= 100,000,000'))
KEYS = ((None, 'give key='), (3, 'typed key'), (np.zeros(2, np.uint32), 'typed key'),
        (jax.random.PRNGKey(0), 'typed key'), ('key', 'typed key'),
        (lambda: jax.random.split(KEY, B + 1), 'one key or one an image'))
SIZES = {'pgd': ('eps', 'step_size'), 'fgsm': ('eps',), 'cw_linf': ('eps', 'step_size'),
         'apgd': ('eps',), 'fab': ('eps',), 'square': ('eps',), 'autoattack': ('eps',)}
STEPS = {'pgd': ('steps', 'restarts'), 'fgsm': (), 'cw_linf': ('steps', 'restarts'),
         'apgd': ('steps', 'restarts', 'eot'), 'fab': ('steps', 'restarts'),
         'square': ('queries',), 'autoattack': ('steps', 'queries', 'batch_size')}


def cases():
  for attack in ATTACKS:
    for kind, (fn, words) in FUNCTIONS.items():
      yield pytest.param(attack, {'fn': fn}, words, id=f'{attack}-fn-{kind}')
    for kind, (changed, words) in VALUES.items():
      yield pytest.param(attack, changed, words, id=f'{attack}-{kind}')
    for name in SIZES[attack]:
      for i, (value, words) in enumerate(NUMBERS):
        yield pytest.param(attack, {name: value}, words, id=f'{attack}-{name}-{i}')
      if attack != 'fab':  # There it is the radius of restarts alone.
        yield pytest.param(attack, {name: 8}, '8 / 255', id=f'{attack}-{name}-8')
    for name in STEPS[attack]:
      for i, (value, words) in enumerate(COUNTS):
        yield pytest.param(attack, {name: value}, words, id=f'{attack}-{name}-{i}')
    if attack != 'fgsm':
      for i, (key, words) in enumerate(KEYS):
        yield pytest.param(attack, {'key': key}, words, id=f'{attack}-key-{i}')
    if attack not in ('cw_linf',):
      for norm in ('l0', 'Linf', 2, np.inf, None):
        yield pytest.param(attack, {'norm': norm}, 'unknown norm', id=f'{attack}-{norm}')
  for attack in ('apgd', 'square', 'autoattack'):
    yield pytest.param(attack, {'eps': 0}, 'finite and > 0', id=f'{attack}-eps-0')
  for attack in ('apgd', 'fab'):
    other = np.asarray((LABELS + 1) % K)
    loss = {'loss': 'targeted_dlr'} if attack == 'apgd' else {}
    for targets, words in (
        (other[:-1], 'targets (3,) do not match'), (other + 0.5, 'must be integers'),
        (other + K, 'is no class'), (other - K, 'target'), (LABELS, 'is its label'),
        (np.eye(K)[other], 'not one-hot'), ('cat', 'targets cannot be an array')):
      yield pytest.param(attack, {'targets': targets} | loss, words,
                         id=f'{attack}-targets-{words}')
  for attack in ('pgd', 'fgsm', 'cw_linf'):
    for lower, upper, words in ((1.0, 0.0, 'lower 1.0'), ('0', 1.0, 'must be a number'),
                                (0.0, float('nan'), 'upper nan'),
                                (0.5, 1.0, 'in [0.5, 1]'),
                                (np.zeros(2), 1.0, 'one number')):
      yield pytest.param(attack, {'lower': lower, 'upper': upper}, words,
                         id=f'{attack}-box-{words}')
  for kappa in (-1.0, float('nan'), 'x', None):
    yield pytest.param('cw_linf', {'kappa': kappa}, 'kappa', id=f'kappa-{kappa}')
  for scale in (-1.0, float('nan'), 'x'):
    yield pytest.param('pgd', {'start': 'gaussian', 'start_scale': scale}, 'start_scale',
                       id=f'start_scale-{scale}')
  for objective, words in (('dlr', 'unknown objective'), (3, 'unknown objective'),
                           (lambda z: z.mean(), 'do not average'),
                           (lambda z: np.asarray(z)[:, 0], 'objective cannot be traced')):
    yield pytest.param('pgd', {'objective': objective}, words, id=f'objective-{words}')
  for name, value in (('step', 3), ('eps_iter', 0.1), ('n_queries', 5)):
    yield pytest.param('autoattack', {name: value}, 'unknown setting of AutoAttack',
                       id=f'autoattack-{name}')


@pytest.mark.parametrize(('attack', 'changed', 'words'), cases())
def test_refused_in_one_line(attack, changed, words):
  changed = {name: value() if name == 'key' and callable(value) else value
             for name, value in changed.items()}
  with pytest.raises(ConfigError) as error:
    run(attack, changed)
  text = str(error.value)
  assert words in text and '\n' not in text and len(text) < 900


@pytest.mark.parametrize('attack', [name for name in ATTACKS if name != 'autoattack'])
def test_logits_that_are_not_numbers_are_named(attack):
  """Of one image alone, whose pixel says so."""
  mark = IMAGES[1, 0]
  def nan_at_one(images):
    return net(images) * jnp.where(images[:, :1] > 0.95, jnp.nan, 1.0)
  images = IMAGES.copy()
  images[1, 0] = 0.99
  labels = np.argmax(images @ WEIGHTS, axis=1)
  assert mark < 0.95 and np.isfinite(images).all()
  with pytest.raises(ConfigError, match='not finite near example 1'):
    run(attack, {'fn': nan_at_one, 'images': images, 'labels': labels})


@pytest.mark.parametrize('attack', ['pgd', 'apgd', 'square'])
def test_what_is_known_is_checked_while_tracing_too(attack):
  """Under jit the function, the shapes, and the values that are constants."""
  with pytest.raises(ConfigError, match='integers'):
    jax.jit(lambda labels: run(attack, {'labels': labels}))(LABELS.astype(np.float32))
  with pytest.raises(ConfigError, match='a tuple of 2'):
    jax.jit(lambda images: run(attack, {
        'fn': lambda x: (net(x), x), 'images': images}))(IMAGES)
  with pytest.raises(ConfigError, match='label 5 of example 2'):
    jax.jit(lambda images: run(attack, {
        'labels': with_label(K), 'images': images}))(IMAGES)


def test_a_good_call_takes_what_numpy_has():
  """Lists, half precision and 64 bits are converted, and nothing else is asked for."""
  wanted = run('pgd', {})
  for images in (IMAGES.tolist(), IMAGES.astype(np.float64), jnp.asarray(IMAGES)):
    np.testing.assert_array_equal(run('pgd', {'images': images}), wanted)
  for labels in (LABELS.tolist(), LABELS.astype(np.uint8), jnp.asarray(LABELS)):
    np.testing.assert_array_equal(run('pgd', {'labels': labels}), wanted)
  for eps in (np.float64(0.1), np.float32(0.1), jnp.float32(0.1)):
    np.testing.assert_array_equal(run('pgd', {'eps': eps}), wanted)
  half = run('pgd', {'images': IMAGES.astype(np.float16)})
  assert half.dtype == jnp.float32


def test_box_beyond_the_unit():
  """Normalised images have a box of their own."""
  found = run('pgd', {'images': 4 * IMAGES - 2, 'lower': -2.0, 'upper': 2.0, 'eps': 3.9,
                      'step_size': 2.0})
  assert float(found.min()) >= -2 and float(found.max()) <= 2
  run('pgd', {'images': 4 * IMAGES, 'lower': -np.inf, 'upper': np.inf, 'eps': 300.0})
