"""Weight averaging: the recursion and the mean in float64, layouts, a whole run."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file

import rkd_jax as rkd
from rkd_jax import losses
from rkd_jax.distill.method import Batch, Outcome
from rkd_jax.errors import ConfigError
from rkd_jax.models.network import Network
from rkd_jax.training import averaging, loop, parallel, state, step

SHAPE, STEPS = (2, 2, 1), 8


class Tiny(nn.Module):
  """Dense, BatchNorm, dense."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Dense(4)(x.reshape(len(x), -1))
    x = nn.BatchNorm(use_running_average=not train, use_fast_variance=False)(x)
    return nn.Dense(3)(x)


def objective(student, teachers, memory, batch):
  logits, student = student.train(batch.image)
  return Outcome(losses.cross_entropy(logits, batch.label), student, memory)


def trained(mean, mesh=None):
  """States after each of 8 steps, 2 of them an epoch; the first one is fresh."""
  random = np.random.default_rng(0)
  network, tx = Network(Tiny()), optax.sgd(0.3, momentum=0.5)
  data = {'image': random.integers(0, 256, (32, *SHAPE), dtype=np.uint8),
          'label': random.integers(0, 3, 32, dtype=np.int32)}
  scan = step.make_scan(step.make_train_step(
      objective, Batch, network, {}, tx, augment=lambda key, image: image,
      steps_per_epoch=2, averaging=mean))
  current = parallel.replicate(state.create(
      network, SHAPE, tx, {}, init_key=jax.random.key(1),
      train_key=jax.random.key(2), averaging=mean), mesh)
  compiled = parallel.compile_scan(scan, mesh)
  keep = lambda s: jax.tree.map(np.array, (s.variables, s.averaged))
  seen = [keep(current)]
  for row in random.permutation(32).reshape(4, 8)[[0, 1, 2, 3, 1, 0, 3, 2]]:
    current, _ = compiled(current, {}, data, row[None].astype(np.int32))
    seen.append(keep(current))
  return seen


def make(name, **changes):
  settings = {'name': name, 'decay': 0.3, 'start': 0.25, **changes}
  return averaging.make(settings, epochs=4, steps_per_epoch=2)


def assert_same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope='module')
def plain():
  return trained(averaging.OFF)


def test_ema_is_the_recursion(plain):
  """From the second epoch on; parameters and running statistics alike."""
  seen = trained(make('ema'))
  mean = None
  for i, (variables, averaged) in enumerate(seen):
    assert_same(variables, plain[i][0])  # The student does not notice.
    if i <= 2:
      assert_same(averaged, variables)
      mean = jax.tree.map(np.float64, variables)
      continue
    n = i - 3  # Updates since the start, before this one.
    decay = min(0.3, (1 + n) / (10 + n))
    mean = jax.tree.map(lambda m, v, d=decay: d * m + (1 - d) * np.float64(v),
                        mean, variables)
    jax.tree.map(lambda a, m: np.testing.assert_allclose(a, m, rtol=1e-5, atol=1e-7),
                 averaged, mean)
  assert not np.allclose(averaged['batch_stats']['BatchNorm_0']['mean'],
                         variables['batch_stats']['BatchNorm_0']['mean'])


def test_swa_is_the_mean_of_the_epochs_ends(plain):
  seen = trained(make('swa'))
  for i, (variables, averaged) in enumerate(seen):
    assert_same(variables, plain[i][0])
    ends = [k for k in (4, 6, 8) if k <= i] or [min(i, 2)]
    expected = jax.tree.map(lambda *leaves: np.mean(np.float64(leaves), axis=0),
                            *(plain[k][0] for k in ends))
    jax.tree.map(lambda a, m: np.testing.assert_allclose(a, m, rtol=1e-5, atol=1e-7),
                 averaged, expected)


def test_without_memory_the_average_is_the_student():
  for variables, averaged in trained(make('ema', decay=0.0)):
    assert_same(averaged, variables)


def test_a_mesh_averages_alike():
  for mean in (make('ema'), make('swa')):
    one, other = (trained(mean, parallel.make_mesh(n))[-1][1] for n in (1, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
                 one, other)


def test_long_memory_and_what_is_judged(plain):
  """The share tends to 1 - decay; without averaging the student itself is judged."""
  mean = averaging.make({'name': 'ema', 'decay': 0.995, 'start': 0.0}, epochs=100,
                        steps_per_epoch=100)
  np.testing.assert_allclose(
      [mean.share(jnp.int32(n)) for n in (0, 10, 9999)],
      [0.9, 9 / 20, 0.005], rtol=1e-4)
  bare = state.TrainState(step=0, key=None, variables={'params': 1}, opt_state=(),
                          memory={})
  assert bare.judged == {'params': 1} and plain[-1][1] == {}
  assert bare.replace(averaged={'params': 2}).judged == {'params': 2}


@pytest.mark.parametrize('settings, words', [
    ({'name': 'emma'}, "did you mean 'ema'"),
    ({'decay': 1.0}, r'averaging.decay must be in \[0, 1\), got 1.0'),
    ({'start': -0.1}, 'averaging.start'),
    ({'start': float('nan')}, 'averaging.start'),
])
def test_errors(settings, words):
  with pytest.raises(ConfigError, match=words):
    make(**{'name': 'ema', **settings})


RUN = {
    'devices': 1, 'model': 'mlp_16', 'data': {'name': 'digits'}, 'method': 'pgd_at',
    'attack': {'eps': 0.1, 'step_size': 0.05, 'steps': 2},
    'train': {'epochs': 4, 'batch_size': 128},
    'validation': {'every': 2, 'examples': 100},
    'evaluation': {'attacks': ('clean',), 'examples': 100},
    'averaging': {'name': 'ema', 'decay': 0.9, 'start': 0.25},
    'awp': {'gamma': 0.01, 'start': 0.5},
}


def weights_of(workdir):
  return {path.name: path.read_bytes()
          for path in sorted(workdir.rglob('*.safetensors'))}


def test_a_run_exports_the_average_and_resumes_bitwise(tmp_path, monkeypatch):
  """Interrupted in the third epoch, where both wrappers are on."""
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  states = []
  export = loop.fit
  monkeypatch.setattr(loop, 'fit', lambda *args: states.append(export(*args))
                      or states[-1])
  rkd.run(RUN, whole)
  last = load_file(whole / 'weights' / 'student-last.safetensors')
  find = lambda tree: {name: np.asarray(value) for name, value in zip(
      sorted(last), _by_name(tree, sorted(last)))}
  averaged, student = find(states[0].averaged), find(states[0].variables)
  for name in last:
    np.testing.assert_array_equal(last[name], averaged[name])
  assert any(np.any(last[name] != student[name]) for name in last)

  train_epoch = loop._train_epoch

  def fails(state, plan, epoch, checkpoints, *rest):
    if epoch == 2:
      checkpoints.wait()  # A process that dies does not go on writing; this one would.
      raise KeyboardInterrupt
    return train_epoch(state, plan, epoch, checkpoints, *rest)

  monkeypatch.setattr(loop, '_train_epoch', fails)
  with pytest.raises(KeyboardInterrupt):
    rkd.run(RUN, broken)
  monkeypatch.setattr(loop, '_train_epoch', train_epoch)
  rkd.run(RUN, broken)
  assert weights_of(broken) == weights_of(whole)
  rows = [json.loads(line) for line in
          (broken / 'metrics.jsonl').read_text().splitlines()]
  assert [('train/awp_rise' in row) for row in rows] == [False, False, True, True]
  assert rows[-1]['train/awp_rise'] > 0


def _by_name(tree, names):
  """Leaves of nested dictionaries by their names joined with '/' or '.'."""
  flat = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    flat['/'.join(part.key for part in path)] = leaf
  return [flat[name.replace('.', '/')] for name in names]
