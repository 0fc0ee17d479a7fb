"""A PyTorch module attacked like the same function in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rkd_jax import attacks
from rkd_jax.errors import ConfigError

torch = pytest.importorskip('torch')
SHAPE, K, EPS = (6, 5, 2), 4, 0.02
RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(3, 3, SHAPE[2], 8)).astype(np.float32) / 3
HEAD = RNG.normal(size=(8, K)).astype(np.float32)
IMAGES = RNG.uniform(size=(12, *SHAPE)).astype(np.float32)


def hidden(images):
  y = jax.lax.conv_general_dilated(
      images, KERNEL, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  return jnp.mean(jax.nn.softplus(y), axis=(1, 2))


BIAS = -np.asarray(hidden(IMAGES)).mean(0) @ HEAD  # So that all classes occur.


def in_jax(images):
  return hidden(images) @ HEAD + BIAS


class Module(torch.nn.Module):
  """The same in torch."""

  def __init__(self):
    super().__init__()
    self.conv = torch.nn.Conv2d(SHAPE[2], 8, 3, padding=1, bias=False)
    self.head = torch.nn.Linear(8, K)
    with torch.no_grad():
      self.conv.weight.copy_(torch.tensor(KERNEL.transpose(3, 2, 0, 1).copy()))
      self.head.weight.copy_(torch.tensor(HEAD.T.copy()))
      self.head.bias.copy_(torch.tensor(BIAS))

  def forward(self, x):
    return self.head(torch.nn.functional.softplus(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope='module')
def fn():
  return attacks.from_torch(Module().eval(), K)


def test_logits_and_gradients(fn):
  of = lambda f: jax.jit(jax.value_and_grad(lambda x: jnp.sum(jnp.sin(f(x)))))(IMAGES)
  np.testing.assert_allclose(jax.jit(fn)(IMAGES), in_jax(IMAGES), atol=1e-5)
  for ours, theirs in zip(of(in_jax), of(fn), strict=True):
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_jacobian(fn):
  np.testing.assert_allclose(
      jax.jacrev(fn)(IMAGES[:2]), jax.jacrev(in_jax)(IMAGES[:2]), atol=1e-5)


def test_autoattack(fn):
  labels = np.argmax(in_jax(IMAGES), axis=1)
  run = lambda f: attacks.autoattack(
      f, IMAGES, labels, eps=EPS, key=jax.random.key(0), batch_size=8, steps=10,
      queries=30)
  ours, theirs = run(in_jax), run(fn)
  assert 0 < ours.survived.sum() < len(IMAGES)
  np.testing.assert_array_equal(theirs.survived, ours.survived)
  np.testing.assert_allclose(theirs.images, ours.images, atol=1e-4)


@pytest.mark.parametrize('module,classes,says', [
    (lambda: Module().train(), K, 'call module.eval'),
    (lambda: np.sin, K, 'takes a torch.nn.Module'),
    (lambda: 'teacher.pt', K, 'got str; a file or a state dict'),
    (lambda: Module().state_dict(), K, 'load_state_dict'),
    (lambda: Module().eval(), 2.5, 'num_classes must be'),
    (lambda: Module().eval(), 1, 'num_classes must be')])
def test_refused(module, classes, says):
  with pytest.raises(ConfigError, match=says):
    attacks.from_torch(module(), classes)


def test_another_number_of_classes():
  fn = attacks.from_torch(Module().eval(), K + 1)
  with pytest.raises(ConfigError, match='wanted logits'):
    jax.block_until_ready(fn(IMAGES))


def test_images_that_the_module_does_not_take():
  fn = attacks.from_torch(Module().eval(), K, channels_first=False)
  with pytest.raises(ConfigError, match=r'cannot take images \[6, 5, 2\]'):
    jax.jit(fn)(IMAGES)
