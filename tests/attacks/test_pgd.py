"""PGD, FGSM and CW against a float64 definition and closed-form optima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import attacks
from rkd_jax.errors import ConfigError

B, D, H, K = 6, 8, 5, 4
SHAPE = (2, 2, 2)
RNG = np.random.default_rng(0)
W1, W2 = RNG.normal(size=(D, H)), RNG.normal(size=(H, K)) * 2
IMAGES = RNG.uniform(size=(B, *SHAPE)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 1, 2])
REFERENCE = RNG.normal(size=(B, K)) * 2


def mlp(images, w1=W1, w2=W2):
  w1, w2 = jnp.asarray(w1, jnp.float32), jnp.asarray(w2, jnp.float32)
  return jnp.tanh(images.reshape(len(images), -1) @ w1) @ w2


def softmax(logits):
  shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
  return shifted / shifted.sum(axis=1, keepdims=True)


def gradient_by_hand(flat, objective):
  """Gradient of the summed objective in float64, from the chain rule."""
  hidden = np.tanh(flat @ W1)
  logits = hidden @ W2
  one_hot = np.eye(K)[LABELS]
  if objective == 'ce':
    to_logits = softmax(logits) - one_hot
  elif objective == 'margin':
    rival = np.argmax(np.where(one_hot, -np.inf, logits), axis=1)
    to_logits = np.eye(K)[rival] - one_hot
  else:
    to_logits = softmax(logits) - softmax(REFERENCE)
  return (to_logits @ W2.T * (1 - hidden**2)) @ W1.T


def pgd_by_hand(start, objective, *, norm, eps, step_size, steps):
  clean = IMAGES.astype(np.float64).reshape(B, D)
  adv = start.astype(np.float64).reshape(B, D)
  for _ in range(steps):
    gradient = gradient_by_hand(adv, objective)
    assert np.abs(gradient).min() > 1e-5  # Else rounding decides over signs,
    assert np.linalg.norm(gradient, axis=1).min() > 0.02  # or over directions.
    if norm == 'linf':
      offset = adv + step_size * np.sign(gradient) - clean
      offset = np.clip(offset, -eps, eps)
    else:
      length = np.linalg.norm(gradient, axis=1, keepdims=True)
      offset = adv + step_size * gradient / length - clean
      length = np.linalg.norm(offset, axis=1, keepdims=True)
      offset *= np.minimum(1, eps / np.maximum(length, 1e-300))
    adv = np.clip(clean + offset, 0, 1)
  return adv.reshape(B, *SHAPE)


@pytest.mark.parametrize('norm', ['linf', 'l2'])
@pytest.mark.parametrize('objective,start', [
    ('ce', 'none'), ('margin', 'none'), ('kl', 'none'), ('ce', 'uniform')])
def test_matches_definition(norm, objective, start):
  settings = {'norm': norm, 'eps': 0.2, 'step_size': 0.07, 'start': start,
              'key': jax.random.key(5), 'objective': objective}
  if objective == 'kl':
    settings['objective'] = attacks.kl_to(jnp.asarray(REFERENCE, jnp.float32))
  run = lambda steps: np.asarray(jax.jit(lambda images: attacks.pgd(
      mlp, images, LABELS, steps=steps, **settings))(IMAGES))
  begin = IMAGES if start == 'none' else run(0)
  assert (begin == IMAGES).all() == (start == 'none')
  expected = pgd_by_hand(begin, objective, norm=norm, eps=0.2, step_size=0.07,
                         steps=5)
  np.testing.assert_allclose(run(5), expected, atol=5e-6)
  assert np.abs(expected - begin).max() > 0.05


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_fgsm_is_one_whole_step_from_the_clean_image(norm):
  expected = pgd_by_hand(IMAGES, 'ce', norm=norm, eps=0.1, step_size=0.1, steps=1)
  got = attacks.fgsm(mlp, IMAGES, LABELS, eps=0.1, norm=norm)
  np.testing.assert_allclose(got, expected, atol=2e-6)


def test_cw_linf_is_pgd_on_the_margin():
  expected = pgd_by_hand(IMAGES, 'margin', norm='linf', eps=0.1, step_size=0.03,
                         steps=4)
  got = attacks.cw_linf(mlp, IMAGES, LABELS, key=None, eps=0.1, step_size=0.03,
                        steps=4, start='none')
  np.testing.assert_allclose(got, expected, atol=2e-6)


def test_cw_linf_rests_beyond_kappa():
  logits = np.asarray(mlp(jnp.asarray(IMAGES)))
  right = np.argmax(logits, axis=1)
  wrong = np.argmin(logits, axis=1)  # As labels: these images are lost already.
  labels = np.where(np.arange(B) % 2, wrong, right)
  got = np.asarray(attacks.cw_linf(mlp, IMAGES, labels, key=None, eps=0.1,
                                   step_size=0.03, steps=2, start='none', kappa=0.))
  moved = np.abs(got - IMAGES).reshape(B, -1).max(axis=1)
  assert (moved[1::2] == 0).all() and (moved[::2] > 0.02).all()


OPEN = {'lower': -np.inf, 'upper': np.inf}


def linear(images):
  weights = np.random.default_rng(4).normal(size=(D, 2))
  return images.reshape(len(images), -1) @ jnp.asarray(weights, jnp.float32)


@pytest.mark.parametrize('norm,dual,attack', [
    ('linf', 1, 'fgsm'), ('l2', 2, 'fgsm'), ('linf', 1, 'pgd'),
    ('l2', 2, 'pgd-restarts'), ('linf', 1, 'cw')])
def test_reaches_the_worst_case_of_a_linear_classifier(norm, dual, attack):
  """The margin of a linear classifier grows by eps times the dual norm, at most."""
  labels, eps = np.array([0, 1, 0, 1, 0, 1]), 0.25
  weights = np.random.default_rng(4).normal(size=(D, 2))
  flat = IMAGES.astype(np.float64).reshape(B, D)
  direction = (weights[:, 1] - weights[:, 0])[None] * np.where(labels, -1, 1)[:, None]
  best = np.sum(flat * direction, axis=1) + eps * np.linalg.norm(
      direction, ord=dual, axis=1)
  key = jax.random.key(0)
  if attack == 'fgsm':
    adv = attacks.fgsm(linear, IMAGES, labels, eps=eps, norm=norm, **OPEN)
  elif attack == 'cw':
    adv = attacks.cw_linf(linear, IMAGES, labels, key=key, eps=eps, step_size=0.02,
                          **OPEN)
  else:
    adv = jax.jit(lambda images: attacks.pgd(
        linear, images, labels, key=key, eps=eps, step_size=0.1, steps=50,
        norm=norm, restarts=1 + (attack != 'pgd'), **OPEN))(IMAGES)
  reached = np.sum(np.asarray(adv, np.float64).reshape(B, D) * direction, axis=1)
  np.testing.assert_allclose(reached, best, rtol=2e-5)


def waves(images):
  """Many local maxima, so that restarts differ."""
  phase = 40 * images.reshape(len(images), -1)
  return jnp.stack([jnp.sin(phase).sum(1), jnp.cos(2 * phase).sum(1)], axis=1)


@pytest.mark.parametrize('objective', ['ce', 'callable'])
def test_more_restarts_are_never_worse(objective):
  labels = np.array([0, 1, 0, 1, 0, 1])
  chosen = (lambda out: jnp.square(out).sum(1)) if objective == 'callable' else objective
  values, wrong = [], []
  for restarts in (1, 5):
    adv = jax.jit(lambda images, r=restarts: attacks.pgd(
        waves, images, labels, key=jax.random.key(1), eps=0.1, step_size=0.004,
        steps=3, objective=chosen, restarts=r))(IMAGES)
    logits = np.asarray(waves(adv), np.float64)
    wrong.append(np.argmax(logits, axis=1) != labels)
    values.append(-np.log(softmax(logits)[np.arange(B), labels])
                  if objective == 'ce' else np.square(logits).sum(axis=1))
  if objective == 'ce':
    assert (wrong[1] >= wrong[0]).all()
  same = wrong[1] == wrong[0] if objective == 'ce' else slice(None)
  assert (values[1] - values[0])[same].min() > -1e-4
  assert (values[1] > values[0] + 1e-3).any()


def test_restarts_prefer_misclassified_over_a_higher_objective():
  """Cross-entropy 1.1 with three even classes, of which the label is one, against
  0.7 with one class ahead of the label."""
  def fn(images):
    high = images[:, :1] > 0.5
    even = jnp.array([[0.02, 0.01, 0.0]])
    lost = jnp.array([[0.0, 0.02, -20.0]])
    return jnp.where(high, even, lost) + 0 * images[:, :1]

  images, labels = jnp.full((4, 2), 0.5), np.zeros(4, int)
  adv = jax.jit(lambda key: attacks.pgd(
      fn, images, labels, key=key, eps=0.4, step_size=0.0, steps=0,
      restarts=12))(jax.random.key(0))
  assert (np.asarray(adv)[:, 0] <= 0.5).all()


def test_no_steps_give_the_start():
  adv = attacks.pgd(mlp, IMAGES, LABELS, key=None, eps=0.1, step_size=0.1, steps=0,
                    start='none')
  np.testing.assert_array_equal(adv, IMAGES)


def test_zero_gradient_stays_put():
  constant = lambda images: jnp.zeros((len(images), K)) + 0 * images.sum()
  for norm in ('linf', 'l2'):
    adv = attacks.pgd(constant, IMAGES, LABELS, key=None, eps=0.1, step_size=0.1,
                      steps=3, norm=norm, start='none')
    np.testing.assert_array_equal(adv, IMAGES)


def test_any_output_with_a_callable_objective():
  """A pair of logits, no labels: AdaAD's inner maximisation."""
  pair = lambda images: (mlp(images), mlp(images, w2=-W2))
  adv = attacks.pgd(pair, IMAGES, None, key=None, eps=0.1, step_size=0.02, steps=5,
                    start='none', objective=lambda out: attacks.kl_divergence(*out))
  assert (attacks.kl_divergence(*pair(adv))
          > attacks.kl_divergence(*pair(jnp.asarray(IMAGES))) + 0.01).all()


def test_no_gradient_flows_out_or_into_what_fn_closes_over():
  def loss(images, w1, eps, *, adv=None):
    if adv is None:
      adv = attacks.pgd(lambda x: mlp(x, w1), images, LABELS, key=None, eps=eps,
                        step_size=eps / 4, steps=3, start='none')
    return jnp.sum(attacks.cross_entropy(mlp(adv, w1), LABELS))

  images, w1 = jnp.asarray(IMAGES), jnp.asarray(W1, jnp.float32)
  to_images, to_w1, to_eps = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(
      images, w1, 0.1)
  assert not to_images.any() and not to_eps
  fixed = attacks.pgd(mlp, IMAGES, LABELS, key=None, eps=0.1, step_size=0.025,
                      steps=3, start='none')
  expected = jax.grad(loss, argnums=1)(images, w1, 0.1, adv=fixed)
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(to_w1, expected, rtol=1e-4, atol=1e-5)


def test_one_gradient_a_step_and_no_other_evaluation():
  seen = []

  def counted(images):
    jax.debug.callback(lambda: seen.append(1))
    return mlp(images)

  attacks.pgd(counted, IMAGES, LABELS, key=None, eps=0.1, step_size=0.1, steps=4,
              start='none').block_until_ready()
  jax.effects_barrier()
  assert len(seen) == 4


def call(**changed):
  arguments = {'images': IMAGES, 'labels': LABELS, 'key': jax.random.key(0),
               'eps': 0.1, 'step_size': 0.02, 'steps': 1, 'fn': mlp} | changed
  return attacks.pgd(arguments.pop('fn'), arguments.pop('images'),
                     arguments.pop('labels'), **arguments)


@pytest.mark.parametrize('changed,says', [
    ({'eps': -0.1}, 'eps must be finite and >= 0, got -0.1'),
    ({'eps': float('nan')}, 'eps'),
    ({'eps': np.ones(B)}, 'one number'),
    ({'step_size': -1.0}, 'step_size'),
    ({'steps': -1}, 'steps must be >= 0, got -1'),
    ({'steps': 2.0}, 'Python int'),
    ({'restarts': 0}, 'restarts must be >= 1'),
    ({'restarts': 2, 'start': 'none'}, 'repeat'),
    ({'images': (IMAGES * 255).astype(np.uint8)}, 'divide uint8'),
    ({'labels': LABELS[:-1]}, 'do not match'),
    ({'labels': np.eye(K)[LABELS]}, 'not one-hot'),
    ({'labels': LABELS.astype(np.float32)}, 'integers'),
    ({'labels': None}, 'got None'),
    ({'norm': 'l1'}, "unknown norm 'l1'"),
    ({'objective': 'dlr'}, "unknown objective 'dlr'"),
    ({'start': 'randn'}, "unknown start 'randn'"),
    ({'start_scale': 0.1}, 'no effect'),
    ({'lower': 1.0, 'upper': 0.0}, 'lower 1.0'),
    ({'key': None}, "start='none'"),
    ({'key': np.zeros(2, np.uint32)}, 'typed key'),
    ({'key': lambda: jax.random.split(jax.random.key(0), B + 1)}, 'one key or one'),
    ({'objective': lambda logits: logits.mean()}, 'do not average'),
    ({'fn': lambda images: images}, 'logits'),
])
def test_refused(changed, says):
  if 'key' in changed and callable(changed['key']):
    changed = {'key': changed['key']()}
  with pytest.raises(ConfigError, match=says):
    call(**changed)
  with pytest.raises(ConfigError):
    jax.jit(lambda: call(**changed))()


def test_described():
  assert [name for name, _ in attacks.describe()] == [
      'fgsm', 'pgd', 'cw_linf', 'apgd', 'fab', 'square', 'autoattack']
  assert all(line.endswith('.') for _, line in attacks.describe())
