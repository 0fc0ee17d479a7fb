"""Small torch definitions of the networks, with their customary names.

Written from the papers' diagrams and the names in published state dicts; what
test_against_torch.py and test_torch_weights.py compare with.
"""

import torch
import torch.nn.functional as F
from torch import nn


def conv(channels, features, size=3, stride=1, **kwargs):
  return nn.Conv2d(channels, features, size, stride, size // 2, bias=False, **kwargs)


def stride_of(stage, i):
  return 2 if stage > 0 and i == 0 else 1


class Basic(nn.Module):
  """shortcut: 'conv' (1x1 conv and BN) or 'pad' (He et al., option A)."""

  ratio = 1

  def __init__(self, channels, width, stride, shortcut):
    super().__init__()
    self.conv1, self.bn1 = conv(channels, width, 3, stride), nn.BatchNorm2d(width)
    self.conv2, self.bn2 = conv(width, width), nn.BatchNorm2d(width)
    self.shortcut = nn.Sequential()
    self.pad = 0
    if stride != 1 or channels != width:
      if shortcut == 'conv':
        self.shortcut = nn.Sequential(
            conv(channels, width, 1, stride), nn.BatchNorm2d(width))
      else:
        self.pad = (width - channels) // 2

  def forward(self, x):
    y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
    if self.pad:
      x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
    return F.relu(y + self.shortcut(x))


class Bottleneck(nn.Module):
  ratio = 4

  def __init__(self, channels, width, stride, shortcut):
    super().__init__()
    del shortcut
    self.conv1, self.bn1 = conv(channels, width, 1), nn.BatchNorm2d(width)
    self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
    self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
    self.shortcut = nn.Sequential()
    if stride != 1 or channels != 4 * width:
      self.shortcut = nn.Sequential(
          conv(channels, 4 * width, 1, stride), nn.BatchNorm2d(4 * width))

  def forward(self, x):
    y = F.relu(self.bn1(self.conv1(x)))
    y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
    return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
  def __init__(self, depths, width, num_classes, block=Basic, shortcut='conv'):
    super().__init__()
    self.conv1, self.bn1 = conv(3, width), nn.BatchNorm2d(width)
    self.stages, channels = len(depths), width
    for stage, depth in enumerate(depths):
      blocks = []
      for i in range(depth):
        features = width * 2**stage
        blocks.append(block(channels, features, stride_of(stage, i), shortcut))
        channels = features * block.ratio
      setattr(self, f'layer{stage + 1}', nn.Sequential(*blocks))
    self.linear = nn.Linear(channels, num_classes)

  def forward(self, x):
    x = F.relu(self.bn1(self.conv1(x)))
    for stage in range(self.stages):
      x = getattr(self, f'layer{stage + 1}')(x)
    return self.linear(x.mean((2, 3)))


class PreActBlock(nn.Module):
  def __init__(self, channels, width, stride):
    super().__init__()
    self.bn1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, width, 3, stride)
    self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width)
    self.shortcut = None
    if stride != 1 or channels != width:
      self.shortcut = nn.Sequential(conv(channels, width, 1, stride))

  def forward(self, x):
    y = F.relu(self.bn1(x))
    x = x if self.shortcut is None else self.shortcut(y)
    return x + self.conv2(F.relu(self.bn2(self.conv1(y))))


class PreActResNet(nn.Module):
  def __init__(self, depths, width, num_classes):
    super().__init__()
    self.conv1 = conv(3, width)
    self.stages, channels = len(depths), width
    for stage, depth in enumerate(depths):
      blocks = []
      for i in range(depth):
        blocks.append(PreActBlock(channels, width * 2**stage, stride_of(stage, i)))
        channels = width * 2**stage
      setattr(self, f'layer{stage + 1}', nn.Sequential(*blocks))
    self.linear = nn.Linear(channels, num_classes)

  def forward(self, x):
    x = self.conv1(x)
    for stage in range(self.stages):
      x = getattr(self, f'layer{stage + 1}')(x)
    return self.linear(x.mean((2, 3)))


class WideBlock(nn.Module):
  def __init__(self, channels, width, stride):
    super().__init__()
    self.bn1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, width, 3, stride)
    self.bn2, self.conv2 = nn.BatchNorm2d(width), conv(width, width)
    equal = channels == width
    self.convShortcut = None if equal else nn.Conv2d(
        channels, width, 1, stride, bias=False)

  def forward(self, x):
    activated = F.relu(self.bn1(x))
    y = self.conv2(F.relu(self.bn2(self.conv1(activated))))
    return y + (x if self.convShortcut is None else self.convShortcut(activated))


class WideGroup(nn.Module):
  def __init__(self, depth, channels, width, stride):
    super().__init__()
    self.layer = nn.Sequential(*(
        WideBlock(width if i else channels, width, 1 if i else stride)
        for i in range(depth)))

  def forward(self, x):
    return self.layer(x)


class WideResNet(nn.Module):
  def __init__(self, depth, widening, num_classes):
    super().__init__()
    n = (depth - 4) // 6
    widths = [16, 16 * widening, 32 * widening, 64 * widening]
    self.conv1 = conv(3, 16)
    self.block1 = WideGroup(n, widths[0], widths[1], 1)
    self.sub_block1 = WideGroup(n, widths[0], widths[1], 1)  # Never called.
    self.block2 = WideGroup(n, widths[1], widths[2], 2)
    self.block3 = WideGroup(n, widths[2], widths[3], 2)
    self.bn1 = nn.BatchNorm2d(widths[3])
    self.fc = nn.Linear(widths[3], num_classes)

  def forward(self, x):
    x = self.block3(self.block2(self.block1(self.conv1(x))))
    return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


class Inverted(nn.Module):
  def __init__(self, channels, width, expansion, stride):
    super().__init__()
    inner, self.stride = expansion * channels, stride
    self.conv1, self.bn1 = conv(channels, inner, 1), nn.BatchNorm2d(inner)
    self.conv2 = conv(inner, inner, 3, stride, groups=inner)
    self.bn2 = nn.BatchNorm2d(inner)
    self.conv3, self.bn3 = conv(inner, width, 1), nn.BatchNorm2d(width)
    self.shortcut = nn.Sequential()
    if stride == 1 and channels != width:
      self.shortcut = nn.Sequential(
          conv(channels, width, 1), nn.BatchNorm2d(width))

  def forward(self, x):
    y = F.relu(self.bn1(self.conv1(x)))
    y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
    return y + self.shortcut(x) if self.stride == 1 else y


class MobileNetV2(nn.Module):
  """rows: (expansion, width, repeats, stride) of the paper's table 2."""

  ROWS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2),
          (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

  def __init__(self, num_classes, rows=ROWS, stem=32, last=1280):
    super().__init__()
    self.conv1, self.bn1 = conv(3, stem), nn.BatchNorm2d(stem)
    blocks, channels = [], stem
    for expansion, width, repeats, stride in rows:
      for i in range(repeats):
        blocks.append(Inverted(channels, width, expansion, 1 if i else stride))
        channels = width
    self.layers = nn.Sequential(*blocks)
    self.conv2, self.bn2 = conv(channels, last, 1), nn.BatchNorm2d(last)
    self.linear = nn.Linear(last, num_classes)

  def forward(self, x):
    x = self.layers(F.relu(self.bn1(self.conv1(x))))
    return self.linear(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


class Pyramid(nn.Module):
  def __init__(self, channels, width, stride, bottleneck):
    super().__init__()
    self.stride, self.bottleneck = stride, bottleneck
    self.bn1 = nn.BatchNorm2d(channels)
    if bottleneck:
      self.conv1, self.bn2 = conv(channels, width, 1), nn.BatchNorm2d(width)
      self.conv2, self.bn3 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
      self.conv3, self.bn4 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
    else:
      self.conv1, self.bn2 = conv(channels, width, 3, stride), nn.BatchNorm2d(width)
      self.conv2, self.bn3 = conv(width, width), nn.BatchNorm2d(width)

  def forward(self, x):
    y = self.bn3(self.conv2(F.relu(self.bn2(self.conv1(self.bn1(x))))))
    if self.bottleneck:
      y = self.bn4(self.conv3(F.relu(y)))
    if self.stride == 2:
      x = F.avg_pool2d(x, 2, 2, ceil_mode=True)
    return y + F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))


class PyramidNet(nn.Module):
  def __init__(self, depth, alpha, num_classes, bottleneck=False):
    super().__init__()
    n = (depth - 2) // (9 if bottleneck else 6)
    self.conv1, self.bn1 = conv(3, 16), nn.BatchNorm2d(16)
    channels, width = 16, 16.0
    for stage in range(3):
      blocks = []
      for i in range(n):
        width += alpha / (3 * n)
        blocks.append(
            Pyramid(channels, round(width), stride_of(stage, i), bottleneck))
        channels = round(width) * (4 if bottleneck else 1)
      setattr(self, f'layer{stage + 1}', nn.Sequential(*blocks))
    self.bn_final = nn.BatchNorm2d(channels)
    self.fc = nn.Linear(channels, num_classes)

  def forward(self, x):
    x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)))))
    return self.fc(F.relu(self.bn_final(x)).mean((2, 3)))


class VGG(nn.Module):
  """Named as the network under test: there is no one customary naming."""

  def __init__(self, depths, widths, num_classes):
    super().__init__()
    channels, self.depths = 3, depths
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True), 1):
      for i in range(depth):
        setattr(self, f'stage{stage}_conv{i}', conv(channels, width))
        setattr(self, f'stage{stage}_bn{i}', nn.BatchNorm2d(width))
        channels = width
    self.head = nn.Linear(channels, num_classes)

  def forward(self, x):
    for stage, depth in enumerate(self.depths, 1):
      for i in range(depth):
        x = getattr(self, f'stage{stage}_conv{i}')(x)
        x = F.relu(getattr(self, f'stage{stage}_bn{i}')(x))
      x = F.max_pool2d(x, 2)
    return self.head(x.mean((2, 3)))


class CNN(nn.Module):
  """Named as the network under test."""

  def __init__(self, widths, pooled, size, num_classes):
    super().__init__()
    self.pooled, self.widths, channels = pooled, widths, 3
    for i, width in enumerate(widths, 1):
      layer = (nn.Conv2d(channels, width, 3, padding=1) if pooled
               else nn.Conv2d(channels, width, 4, stride=2, padding=1))
      setattr(self, f'conv{i}', layer)
      channels, size = width, size // 2
    self.dense = nn.Linear(channels * size * size, 100)
    self.head = nn.Linear(100, num_classes)

  def forward(self, x):
    for i in range(1, len(self.widths) + 1):
      x = F.relu(getattr(self, f'conv{i}')(x))
      x = F.max_pool2d(x, 2) if self.pooled else x
    flat = x.permute(0, 2, 3, 1).flatten(1)  # As NHWC.
    return self.head(F.relu(self.dense(flat)))


class MLP(nn.Module):
  """Named as the network under test."""

  def __init__(self, widths, inputs, num_classes):
    super().__init__()
    self.count = len(widths)
    for i, width in enumerate(widths, 1):
      setattr(self, f'dense{i}', nn.Linear(inputs, width))
      inputs = width
    self.head = nn.Linear(inputs, num_classes)

  def forward(self, x):
    x = x.permute(0, 2, 3, 1).flatten(1)  # As NHWC.
    for i in range(1, self.count + 1):
      x = F.relu(getattr(self, f'dense{i}')(x))
    return self.head(x)


def randomise(model, seed):
  """Every parameter and statistic drawn anew, none at a special value."""
  generator = torch.Generator().manual_seed(seed)

  def draw(tensor, low, high):
    tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

  with torch.no_grad():
    for module in model.modules():
      if isinstance(module, nn.BatchNorm2d):
        draw(module.weight, 0.5, 1.5)
        draw(module.bias, -0.5, 0.5)
        draw(module.running_mean, -0.3, 0.3)
        draw(module.running_var, 0.5, 2.0)
      else:  # He's scale, at which the images still matter to the logits.
        for tensor in module.parameters(recurse=False):
          fan_in = tensor[0].numel()
          bound = 0.5 if tensor.ndim == 1 else (6 / fan_in) ** 0.5
          draw(tensor, -bound, bound)
  return model


def biased_after_update(model, images):
  """Trains `model`'s running statistics on images, without Bessel's correction.

  Returns (logits, {layer: (mean, biased variance)}). torch moves its running
  variance towards n / (n - 1) times the batch variance; n is known for each
  layer from its input, so the factor can be taken out again.
  """
  before, counts = {}, {}

  def note(name):
    def hook(module, inputs):
      before[name] = module.running_var.clone()
      counts[name] = inputs[0].numel() // inputs[0].shape[1]
    return hook

  norms = {name: module for name, module in model.named_modules()
           if isinstance(module, nn.BatchNorm2d)}
  hooks = [module.register_forward_pre_hook(note(name))
           for name, module in norms.items()]
  model.train()
  with torch.no_grad():
    logits = model(images)
  for hook in hooks:
    hook.remove()
  statistics = {}
  for name, module in norms.items():
    if name in counts:
      unbiased_part = module.running_var - 0.9 * before[name]
      biased = 0.9 * before[name] + unbiased_part * (1 - 1 / counts[name])
      statistics[name] = (module.running_mean.clone(), biased)
  return logits, statistics
