"""AutoAttack as a whole: against exact answers, PGD, layouts, resuming, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from rkd_jax import attacks
from rkd_jax.attacks import stages
from rkd_jax.errors import ConfigError

pytestmark = pytest.mark.usefixtures('quick_compilation')
N, D, K = 21, 12, 5
RNG = np.random.default_rng(5)
WEIGHTS = RNG.normal(size=(D, K)).astype(np.float32)
IMAGES = RNG.uniform(size=(N, D)).astype(np.float32)
LABELS = np.argmax(IMAGES @ WEIGHTS, axis=1)
LABELS[::7] = (LABELS[::7] + 1) % K  # Wrong from the start.
FEW = {'steps': 20, 'queries': 100, 'key': jax.random.key(0), 'batch_size': 8}


def linear(weights, images):
  return images @ weights


FN = functools.partial(linear, jnp.asarray(WEIGHTS))


def exactly_robust(eps):
  """bool[N] for 'linf': each margin of a linear classifier has its worst corner."""
  low, high = np.maximum(IMAGES - eps, 0.0), np.minimum(IMAGES + eps, 1.0)
  worst = np.full(N, np.inf)
  for example in range(N):
    for rival in range(K):
      if rival != LABELS[example]:
        w = (WEIGHTS[:, LABELS[example]] - WEIGHTS[:, rival]).astype(np.float64)
        corner = np.where(w > 0, low[example], high[example])
        worst[example] = min(worst[example], w @ corner)
  assert np.abs(worst).min() > 1e-4
  return worst > 0


@pytest.fixture(scope='module')
def standard():
  store = {}
  seen = []
  result = attacks.autoattack(FN, IMAGES, LABELS, eps=0.08, store=store,
                              progress=lambda *args: seen.append(args), **FEW)
  return result, store, seen


def test_the_exact_answer_of_a_linear_classifier(standard):
  result, _, _ = standard
  right = np.argmax(IMAGES @ WEIGHTS, axis=1) == LABELS
  np.testing.assert_array_equal(result.robust['clean'], right)
  robust = exactly_robust(0.08)
  assert 3 < robust.sum() < right.sum() - 3
  np.testing.assert_array_equal(result.survived, robust)
  broken = right & ~robust
  logits = result.images.astype(np.float64) @ WEIGHTS
  assert (np.argmax(logits, axis=1) != LABELS)[broken].all()
  np.testing.assert_array_equal(result.images[~broken], IMAGES[~broken])
  assert np.abs(result.images - IMAGES).max() <= np.float32(0.08)
  assert result.images.min() >= 0 and result.images.max() <= 1


def test_reports_add_up(standard):
  result, _, seen = standard
  assert list(result.robust) == ['clean', 'apgd-ce', 'apgd-t', 'fab-t', 'square']
  before = result.robust['clean']
  for report in result.reports:
    after = result.robust[report.name]
    assert not (after & ~before).any()
    assert report.attacked == before.sum()
    assert report.broken == before.sum() - after.sum()
    assert report.robust_accuracy == after.mean()
    before = after
  apgd_ce, _, fab_t, square = result.reports
  # 21 gradients each for the survivors, at least one for the others.
  survived = int(result.robust['apgd-ce'].sum())
  assert (21 * survived + apgd_ce.broken <= apgd_ce.gradients
          < 21 * apgd_ce.attacked)
  assert fab_t.gradients == 20 * 4 * fab_t.attacked  # Nothing was left to break.
  assert square.queries == 100 * square.attacked and square.gradients == 0
  assert seen[-1] == ('square', square.attacked, square.attacked, before.mean())


@pytest.mark.parametrize('layout', ['other batches', 'mesh'])
def test_the_same_on_every_layout(standard, layout):
  result, _, _ = standard
  options = {'batch_size': 5}
  if layout == 'mesh':
    if jax.device_count() < 8:
      pytest.skip('8 devices wanted')
    options = {'mesh': jax.make_mesh((8,), ('batch',), axis_types=(AxisType.Auto,))}
  again = attacks.autoattack(FN, IMAGES, LABELS, eps=0.08, **FEW | options)
  for name, robust in result.robust.items():
    np.testing.assert_array_equal(again.robust[name], robust)
  np.testing.assert_allclose(again.images, result.images, atol=1e-5)


def test_an_interrupted_attack_goes_on(standard):
  """With half of the batches there, the rest is computed; with all of them, none."""
  result, store, _ = standard
  calls = []
  compile_fn = lambda fn: calls.append(fn) or jax.jit(fn)
  run = lambda store: attacks.autoattack(
      FN, IMAGES, LABELS, eps=0.08, store=store, compile_fn=compile_fn, **FEW)
  half = dict(list(store.items())[:len(store) // 2])
  again = run(half)
  assert half.keys() == store.keys()
  np.testing.assert_array_equal(again.images, result.images)
  assert [r.queries for r in again.reports] == [r.queries for r in result.reports]
  del calls[:]
  whole = run(dict(store))
  assert not calls  # Not even a program: those of the same function are kept.
  assert whole.reports == result.reports
  other = dict(store)
  attacks.autoattack(FN, IMAGES, LABELS, eps=0.081, store=other, version='fast', **FEW)
  assert len(other) > len(store)  # Another radius shares nothing.


def relu(images):
  """A random network with two hidden layers, far from linear."""
  rng = np.random.default_rng(1)
  draw = lambda *shape: jnp.asarray(
      rng.normal(size=shape) * 2 / shape[0]**0.5, jnp.float32)
  hidden = jnp.maximum((images - 0.5) @ draw(D, 16), 0)
  return jnp.maximum(hidden @ draw(16, 16), 0) @ draw(16, K)


@pytest.mark.parametrize('norm,eps', [
    ('linf', 0.1), pytest.param('l2', 0.3, marks=pytest.mark.slow)])
def test_not_weaker_than_pgd_with_restarts(norm, eps):
  images = np.random.default_rng(9).uniform(size=(64, D)).astype(np.float32)
  labels = np.argmax(relu(jnp.asarray(images)), axis=1)
  adv = jax.jit(lambda x: attacks.pgd(
      relu, x, labels, key=jax.random.key(1), eps=eps, step_size=eps / 10, steps=100,
      norm=norm, restarts=10))(images)
  pgd = np.argmax(relu(adv), axis=1) == labels
  result = attacks.autoattack(relu, images, labels, norm=norm, eps=eps, version='fast',
                              **FEW | {'steps': 100, 'batch_size': 64})
  assert 5 < pgd.sum() < 60
  assert result.survived.sum() <= pgd.sum()


@pytest.mark.slow
def test_agrees_with_branch_and_bound_on_a_relu_network():
  """Broken or not, for every image, as the exact answer of `bounds` says."""
  from rkd_jax import bounds
  images = np.random.default_rng(9).uniform(size=(10, D)).astype(np.float32)
  labels = np.argmax(relu(jnp.asarray(images)), axis=1)
  result = attacks.autoattack(relu, images, labels, eps=0.1, version='fast',
                              **FEW | {'steps': 100, 'batch_size': 10})
  ball = bounds.linf_ball(jnp.asarray(images), 0.1, lower=0.0, upper=1.0)
  spec = bounds.margins(jnp.asarray(labels), K)
  exact = bounds.verify(relu, ball, spec, timeout_s=20.0)
  status = np.asarray(exact.status)
  assert set(status) == {'verified', 'falsified'}
  np.testing.assert_array_equal(result.survived, status == 'verified')


def test_versions():
  names = lambda version: [s.name for s in stages.make(version, 10)]
  assert names('standard') == ['apgd-ce', 'apgd-t', 'fab-t', 'square']
  assert names('plus') == ['apgd-ce', 'apgd-dlr', 'fab', 'square', 'apgd-t', 'fab-t']
  assert names('rand') == ['apgd-ce', 'apgd-dlr']
  assert names('fast') == ['apgd-ce', 'apgd-t']
  ce, _, fab, square, apgd_t, _ = stages.make('plus', 10)
  assert (ce.steps, ce.restarts, fab.restarts, square.steps, apgd_t.targets) == (
      100, 5, 5, 5000, 9)
  assert len(apgd_t.rounds()) == 9 and len(ce.rounds()) == 5
  assert stages.make('standard', 3)[1].loss == 'difference'
  ce, apgd_t, fab_t, _ = stages.make('standard', 10, norm='l1')
  assert (ce.restarts, apgd_t.targets, fab_t.targets) == (5, 5, 9)
  assert stages.make('fast', 10, norm='l1') == (ce, apgd_t)
  assert stages.make('standard', 10, norm='l2') == stages.make('standard', 10)
  assert stages.make('plus', 2)[1].loss == 'margin'


def test_rand():
  """Noise that hides no decision in the mean: as broken as the network without it."""
  def noisy(images, keys):
    draw = lambda key: 0.3 * jax.random.normal(key, (K,))
    return FN(images) + jax.vmap(draw)(keys)

  result = attacks.autoattack(noisy, IMAGES, LABELS, eps=0.4, version='rand', eot=8,
                              **FEW | {'steps': 5})
  assert list(result.robust) == ['clean', 'apgd-ce', 'apgd-dlr']
  assert result.survived.mean() < 0.1 and not result.warnings


@pytest.mark.parametrize('fn,says', [
    (lambda x: jax.nn.softmax(FN(x)), 'probabilities'),
    (lambda x: 1e-5 * FN(x), 'within'),
    (lambda x: jnp.round(10 * FN(x)), 'zero for 100%'),
    (lambda x: FN(x)[:, :3], '3 classes are too few')])
def test_warnings(fn, says):
  labels = np.array(jnp.argmax(fn(jnp.asarray(IMAGES)), axis=1))
  with pytest.warns(UserWarning, match=says):
    result = attacks.autoattack(fn, IMAGES[:8], labels[:8], eps=0.01, version='fast',
                                **FEW | {'steps': 1})
  assert any(says in text for text in result.warnings)


def test_warns_of_a_random_function():
  rng = np.random.default_rng(0)

  def noisy(images):
    shape = jax.ShapeDtypeStruct((len(images), K), jnp.float32)
    noise = jax.pure_callback(
        lambda _: rng.normal(size=shape.shape).astype(np.float32), shape,
        jax.lax.stop_gradient(images), vmap_method='sequential')
    return FN(images) + noise

  with pytest.warns(UserWarning, match='fn is random'):
    attacks.autoattack(noisy, IMAGES, LABELS, eps=0.01, version='fast',
                       **FEW | {'steps': 1})


def nan_at_some(images):
  return FN(images) / jnp.where(images[:, :1] == IMAGES[3, 0], 0.0, 1.0) * jnp.nan ** (
      images[:, :1] == IMAGES[3, 0])


@pytest.mark.parametrize('changed,says', [
    ({'images': (IMAGES * 255).astype(np.uint8)}, 'divide uint8'),
    ({'images': IMAGES + 0.5}, r'\[0, 1\], got values from'),
    ({'images': IMAGES - 0.5}, 'normalise inside fn'),
    ({'images': np.where(np.arange(N)[:, None] == 2, np.nan, IMAGES)}, 'nan'),
    ({'labels': LABELS + 1}, 'labels are 0 to 4'), ({'labels': LABELS - 1}, 'label -1'),
    ({'labels': LABELS[:-1]}, 'class numbers'),
    ({'labels': LABELS + 0.5}, 'class numbers'),
    ({'eps': 0.0}, 'eps'), ({'eps': -0.1}, 'eps'), ({'eps': float('nan')}, 'eps'),
    ({'fn': nan_at_some}, 'example 3'), ({'fn': lambda x: x.sum()}, 'logits'),
    ({'fn': lambda x: FN(x) - jnp.mean(FN(x), axis=0)}, 'mixes examples'),
    ({'norm': 'l3'}, 'norm'), ({'version': 'fats'}, "did you mean 'fast'"),
    ({'batch_size': 0}, 'batch_size'), ({'key': None}, 'key')])
def test_refused(changed, says):
  given = {'fn': FN, 'images': IMAGES, 'labels': LABELS, 'eps': 0.1, **FEW} | changed
  with pytest.raises(ConfigError, match=says):
    attacks.autoattack(given.pop('fn'), given.pop('images'), given.pop('labels'), **given)
