"""PyTorch forms of the benchmarked networks: same layers, same parameter counts.

Written for the benchmark, NCHW, float32; `multiplications` counts the arithmetic
of convolutions and dense layers, which is what both sides are credited with.
"""

import torch
from torch import nn
from torch.nn import functional as F


def mlp(num_classes=10):
  return nn.Sequential(
      nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
      nn.Linear(256, num_classes))


def cnn(num_classes=10):
  return nn.Sequential(
      nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
      nn.Flatten(), nn.Linear(32 * 7 * 7, 100), nn.ReLU(),
      nn.Linear(100, num_classes))


def cnn_pooled(num_classes=10):
  return nn.Sequential(
      nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
      nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
      nn.Flatten(), nn.Linear(32 * 7 * 7, 100), nn.ReLU(),
      nn.Linear(100, num_classes))


def _conv_bn(inputs, features, size=3, stride=1, groups=1):
  conv = nn.Conv2d(
      inputs, features, size, stride, size // 2, groups=groups, bias=False)
  return nn.Sequential(conv, nn.BatchNorm2d(features))


class Residual(nn.Module):
  """ReLU or not of branch(x) + shortcut(x)."""

  def __init__(self, branch, shortcut, relu):
    super().__init__()
    self.branch, self.shortcut, self.relu = branch, shortcut, relu

  def forward(self, x):
    total = self.branch(x) + self.shortcut(x)
    return F.relu(total) if self.relu else total


def _head(features, num_classes):
  return nn.Sequential(
      nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, num_classes))


def _basic_block(inputs, features, stride):
  branch = nn.Sequential(
      _conv_bn(inputs, features, 3, stride), nn.ReLU(),
      _conv_bn(features, features))
  same = stride == 1 and inputs == features
  shortcut = nn.Identity() if same else _conv_bn(inputs, features, 1, stride)
  return Residual(branch, shortcut, relu=True)


def resnet18(num_classes=10):
  blocks, inputs = [_conv_bn(3, 64), nn.ReLU()], 64
  for features, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
    blocks += [_basic_block(inputs, features, stride),
               _basic_block(features, features, 1)]
    inputs = features
  return nn.Sequential(*blocks, _head(inputs, num_classes))


def _inverted_residual(inputs, features, expansion, stride):
  inner = expansion * inputs
  branch = nn.Sequential(
      _conv_bn(inputs, inner, 1), nn.ReLU(),
      _conv_bn(inner, inner, 3, stride, groups=inner), nn.ReLU(),
      _conv_bn(inner, features, 1))
  if stride != 1:
    return branch
  shortcut = nn.Identity() if inputs == features else _conv_bn(inputs, features, 1)
  return Residual(branch, shortcut, relu=False)


def mobilenet_v2(num_classes=10):
  blocks, inputs = [_conv_bn(3, 32), nn.ReLU()], 32
  for expansion, features, repeats, stride in (
      (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
      (6, 160, 3, 2), (6, 320, 1, 1)):
    for i in range(repeats):
      blocks.append(_inverted_residual(
          inputs, features, expansion, stride if i == 0 else 1))
      inputs = features
  blocks += [_conv_bn(inputs, 1280, 1), nn.ReLU()]
  return nn.Sequential(*blocks, _head(1280, num_classes))


# Names of rkd_jax.models -> the same network here.
NETWORKS = {
    'mlp_256_256': mlp,
    'cnn_16_32': cnn,
    'cnn_pool_16_32': cnn_pooled,
    'resnet18': resnet18,
    'mobilenet_v2': mobilenet_v2,
}


def multiplications(network, image_shape) -> tuple[int, int]:
  """Multiplications for one image [H, W, C]: (of all layers, of the first)."""
  counts = []

  def count(layer, inputs, output):
    del inputs
    counts.append(output[0].numel() * layer.weight[0].numel())

  hooks = [layer.register_forward_hook(count) for layer in network.modules()
           if isinstance(layer, nn.Conv2d | nn.Linear)]
  height, width, channels = image_shape
  weight = next(network.parameters())
  with torch.no_grad():
    network.eval()(weight.new_zeros((1, channels, height, width)))
  for hook in hooks:
    hook.remove()
  return sum(counts), counts[0]
