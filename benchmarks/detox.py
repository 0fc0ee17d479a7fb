"""What optimising RobustKD's mask costs, against plain steps and a PyTorch loop.

WRN-16-2 on 32 x 32 images: seconds a step of (1) the mask's objective and gradient
(cross-entropy and feature variance, all three stages, Adam on the masks), (2) a plain
forward and backward pass of the same network on the same batch, and (3), where PyTorch
is installed, the mask's step there. The aim for (1) / (2) is 1.2. Medians of calls of
several steps each, alternating, after one that is not timed.

  python benchmarks/detox.py --batch 64 --steps 5
  python benchmarks/detox.py --device gpu --dtype bfloat16 --torch-compile --steps 100
"""

import argparse
import functools
import importlib.util
import json
import os
import pathlib
import statistics
import time

os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # torch is here too

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from rkd_jax import losses, models
from rkd_jax.data.batches import to_float
from rkd_jax.losses import features
from rkd_jax.models import masked
from rkd_jax.models.network import Network
from rkd_jax.models.taps import with_features
from rkd_jax.report import provenance
from rkd_jax.training import parallel

LAYERS = ('stage1', 'stage2', 'stage3')


def parse(argv=None):
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0],
      formatter_class=argparse.ArgumentDefaultsHelpFormatter)
  parser.add_argument('--model', default='wide_resnet16_2')
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--size', type=int, default=32, help='height and width')
  parser.add_argument('--steps', type=int, default=5, help='in one call')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--device', choices=('cpu', 'gpu'), default='cpu')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32',
                      help='compute precision of both sides')
  parser.add_argument('--torch-compile', action='store_true',
                      help='torch.compile, and channels-last images')
  parser.add_argument('--out', help='JSON with every value')
  return parser.parse_args(argv)


def jax_runs(args):
  """{'mask': callable, 'plain': callable}, compiled."""
  network = Network(models.create(args.model, num_classes=10, dtype=args.dtype))
  shape = (args.size, args.size, 3)
  variables = network.init(jax.random.key(0), shape)
  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.integers(0, 256, (args.steps, args.batch, *shape)), jnp.uint8)
  labels = jnp.asarray(rng.integers(0, 10, (args.steps, args.batch)), jnp.int32)
  _, seen = jax.eval_shape(functools.partial(with_features, network.module), variables,
                           jnp.zeros((1, *shape)))
  reference = {name: jnp.zeros(seen[name].shape[1:]) for name in LAYERS}
  tx = optax.adam(0.05)

  def mask_loss(free, image, label):
    inside, its = masked.wrap(network, variables, {
        name: {'mask': 0.05 * jax.nn.sigmoid(free[name]), 'reference': reference[name]}
        for name in LAYERS})
    logits, found = with_features(inside.module, its, image)
    return jnp.mean(losses.cross_entropy(logits, label)) + sum(
        features.variance(found[name]) for name in LAYERS)

  def plain_loss(params, image, label):
    logits = network.predict({**variables, 'params': params}, image)
    return jnp.mean(losses.cross_entropy(logits, label))

  def steps(loss, free):
    def body(state, batch):
      grads = jax.grad(loss)(state[0], to_float(batch[0]), batch[1])
      updates, optimizer = tx.update(grads, state[1])
      return (optax.apply_updates(state[0], updates), optimizer), None

    run = parallel.compile_fn(lambda free, images, labels: lax.scan(
        body, (free, tx.init(free)), (images, labels))[0][0])
    return lambda: jax.block_until_ready(run(free, images, labels))

  return {'mask': steps(mask_loss, jax.tree.map(jnp.zeros_like, reference)),
          'plain': steps(plain_loss, variables['params'])}


def torch_run(args):
  """The mask's step in PyTorch; None without it."""
  if importlib.util.find_spec('torch') is None or args.model != 'wide_resnet16_2':
    return None
  import torch
  from torch import nn
  from torch.nn import functional as F

  class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
      super().__init__()
      self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
      self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
      self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
      self.shortcut = None
      if stride != 1 or inputs != outputs:
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
      y = F.relu(self.bn1(x))
      x = x if self.shortcut is None else self.shortcut(y)
      return x + self.conv2(F.relu(self.bn2(self.conv1(y))))

  widths = (16, 32, 64, 128)
  stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
  stages = [nn.Sequential(Block(a, b, s), Block(b, b, 1))
            for a, b, s in zip(widths, widths[1:], (1, 2, 2))]
  last, head = nn.BatchNorm2d(128), nn.Linear(128, 10)
  device = torch.device('cuda' if args.device == 'gpu' else 'cpu')
  torch.set_float32_matmul_precision('high')
  torch.backends.cudnn.benchmark = True
  layout = torch.channels_last if args.torch_compile else torch.contiguous_format
  for module in (stem, *stages, last, head):
    module.eval().requires_grad_(False).to(device, memory_format=layout)
  sizes = (args.size, -(-args.size // 2), -(-args.size // 4))
  free = [torch.zeros(c, s, s, device=device, requires_grad=True)
          for c, s in zip(widths[1:], sizes)]
  optimiser = torch.optim.Adam(free, 0.05)
  images = torch.rand(args.batch, 3, args.size, args.size, device=device).to(
      memory_format=layout)
  labels = torch.randint(0, 10, (args.batch,), device=device)

  def objective():
    x, variance = stem(images), 0
    for stage, z in zip(stages, free):
      x = (1 - 0.05 * torch.sigmoid(z)) * stage(x)
      variance = variance + x.var(0, unbiased=False).mean()
    logits = head(F.relu(last(x)).mean((2, 3)))
    return F.cross_entropy(logits, labels) + variance

  loss = torch.compile(objective) if args.torch_compile else objective

  def run():
    for _ in range(args.steps):
      optimiser.zero_grad()
      with torch.autocast(device.type, torch.bfloat16,
                          enabled=args.dtype == 'bfloat16'):
        value = loss()
      value.backward()
      optimiser.step()
    return value.item()

  return run


def main(argv=None):
  args = parse(argv)
  if jax.default_backend() != args.device:
    raise SystemExit(f'JAX sees no {args.device}: {jax.devices()}')
  runs = jax_runs(args)
  theirs = torch_run(args)
  if theirs is not None:
    runs['torch mask'] = theirs
  seconds = {name: [] for name in runs}
  for run in runs.values():
    run()
  for _ in range(args.repeats):
    for name, run in runs.items():
      began = time.perf_counter()
      run()
      seconds[name].append((time.perf_counter() - began) / args.steps)
  median = {name: statistics.median(values) for name, values in seconds.items()}
  record = {**provenance.describe(), 'arguments': vars(args), 'seconds': seconds,
            'mask / plain': median['mask'] / median['plain']}
  print('| step | seconds | of plain |\n| --- | ---: | ---: |')
  for name, value in median.items():
    print(f'| {name} | {value:.4f} | {value / median["plain"]:.2f} |')
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps(record, indent=1))


if __name__ == '__main__':
  main()
