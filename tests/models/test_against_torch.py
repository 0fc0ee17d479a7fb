"""Logits and running statistics of every family against torch definitions."""

import functools

import jax
import numpy as np
import pytest

from rkd_jax import models
from rkd_jax.models import torch_weights, weights
from rkd_jax.models.cnn import CNN
from rkd_jax.models.mlp import MLP
from rkd_jax.models.mobilenet import MobileNetV2, Row
from rkd_jax.models.preact_resnet import PreActResNet
from rkd_jax.models.pyramidnet import PyramidNet
from rkd_jax.models.resnet import ResNet
from rkd_jax.models.vgg import VGG
from rkd_jax.models.wide_resnet import WideResNet

torch = pytest.importorskip('torch')
from tests.models import torch_reference as reference  # noqa: E402

K = 7
THIN_ROWS = ((1, 4, 1, 1), (2, 6, 2, 2), (3, 6, 1, 1), (2, 8, 1, 1))
THIN_STAGES = ((Row(1, 4, 1, 1),), (Row(2, 6, 2, 2), Row(3, 6, 1, 1), Row(2, 8, 1, 1)))

# name: (family of names or None, network, torch network, image size)
CASES = {
    'resnet_projection': (
        'resnet', ResNet((1, 2, 1), 8, num_classes=K),
        lambda: reference.ResNet((1, 2, 1), 8, K), 8),
    'resnet_padded': (
        'resnet', ResNet((2, 1, 1), 8, padded=True, num_classes=K),
        lambda: reference.ResNet((2, 1, 1), 8, K, shortcut='pad'), 9),
    'resnet_bottleneck': (
        'resnet', ResNet((2, 1), 4, bottleneck=True, num_classes=K),
        lambda: reference.ResNet((2, 1), 4, K, block=reference.Bottleneck), 7),
    'preact_resnet': (
        'preact_resnet', PreActResNet((2, 1), 8, num_classes=K),
        lambda: reference.PreActResNet((2, 1), 8, K), 8),
    'wide_resnet': (
        'wide_resnet', WideResNet(1, 2, num_classes=K),
        lambda: reference.WideResNet(10, 2, K), 8),
    'mobilenet_v2': (
        'mobilenet_v2',
        MobileNetV2(THIN_STAGES, stem_features=6, last_features=10, num_classes=K),
        lambda: reference.MobileNetV2(K, THIN_ROWS, stem=6, last=10), 8),
    'pyramidnet': (
        'pyramidnet', PyramidNet(1, 10, num_classes=K),
        lambda: reference.PyramidNet(8, 10, K), 7),
    'pyramidnet_bottleneck': (
        'pyramidnet', PyramidNet(1, 6, bottleneck=True, num_classes=K),
        lambda: reference.PyramidNet(11, 6, K, bottleneck=True), 8),
    'vgg': (
        None, VGG((1, 2), (6, 8), num_classes=K),
        lambda: reference.VGG((1, 2), (6, 8), K), 8),
    'cnn': (
        None, CNN((5, 6), num_classes=K),
        lambda: reference.CNN((5, 6), False, 9, K), 9),
    'cnn_pool': (
        None, CNN((5, 6), pooled=True, num_classes=K),
        lambda: reference.CNN((5, 6), True, 9, K), 9),
    'mlp': (
        None, MLP((9, 8), num_classes=K),
        lambda: reference.MLP((9, 8), 75, K), 5),
}


# Compiling is all the time that these tests take.
quick_jit = functools.partial(
    jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def same_names(state_dict):
  """Flat variables of a torch network whose layers are named as ours."""
  flat = {}
  for name, tensor in state_dict.items():
    layer, leaf = name.rsplit('.', 1)
    array = tensor.numpy()
    if leaf == 'weight' and array.ndim == 1:
      flat[f'params/{layer}/scale'] = array
    elif leaf == 'weight':
      axes = (2, 3, 1, 0) if array.ndim == 4 else (1, 0)
      flat[f'params/{layer}/kernel'] = array.transpose(axes)
    elif leaf == 'bias':
      flat[f'params/{layer}/bias'] = array
    elif leaf.startswith('running_'):
      flat[f'batch_stats/{layer}/{leaf.removeprefix("running_")}'] = array
  return flat


def case(name):
  """(network, its variables, torch network, NHWC images, the same for torch)."""
  family, module, make, size = CASES[name]
  torch.manual_seed(1)
  model = reference.randomise(make(), seed=2)
  flat = (torch_weights.rename(family, model.state_dict()) if family
          else same_names(model.state_dict()))
  flat = {path: array.copy() for path, array in flat.items()}
  like = weights.template(module, (size, size, 3))
  variables = weights.build(flat, like, name)
  images = np.random.default_rng(3).random((4, size, size, 3)).astype(np.float32)
  nchw = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  return module, variables, model, images, nchw


@pytest.mark.parametrize('name', CASES)
def test_evaluation_mode(name):
  module, variables, model, images, nchw = case(name)
  with torch.no_grad():
    wanted = model.eval()(nchw).numpy()
  found = quick_jit(models.Network(module).predict)(variables, images)
  assert found.dtype == np.float32
  assert np.ptp(wanted, axis=0).max() > 1e-2  # The images matter.
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', [
    'resnet_padded', 'preact_resnet', 'wide_resnet', 'mobilenet_v2', 'pyramidnet',
    'vgg', *(pytest.param(slow, marks=pytest.mark.slow) for slow in (
        'resnet_projection', 'resnet_bottleneck', 'pyramidnet_bottleneck'))])
def test_training_mode_and_running_statistics(name):
  module, variables, model, images, nchw = case(name)
  family = CASES[name][0]
  logits, statistics = reference.biased_after_update(model, nchw)
  found, updated = quick_jit(models.Network(module).train)(variables, images)
  np.testing.assert_allclose(found, logits.numpy(), rtol=1e-4, atol=1e-4)
  wanted = {}
  for layer, (mean, var) in statistics.items():
    wanted[f'{layer}.running_mean'], wanted[f'{layer}.running_var'] = mean, var
  wanted = torch_weights.rename(family, wanted) if family else same_names(wanted)
  running = weights.flatten({'batch_stats': updated['batch_stats']})
  assert set(running) == set(wanted)
  for path, array in running.items():
    np.testing.assert_allclose(array, wanted[path], rtol=1e-4, atol=1e-4,
                               err_msg=path)
    assert np.abs(array - weights.flatten(variables)[path]).max() > 1e-3
  jax.tree.map(np.testing.assert_array_equal, updated['params'],
               variables['params'])
