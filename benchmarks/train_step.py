"""Images/s of one adversarial distillation step, JAX beside PyTorch.

A step of RSLAD: the teacher's clean probabilities once, PGD on the KL to them
with the student in evaluation mode, then the KL losses on adversarial and clean
images in training mode, and an SGD update. JAX runs the library's own step as
`rkd train` compiles it; PyTorch runs torch_step.py. Both sides take turns in one
process, so that what else the machine does falls on both; the table shows
medians.

  python benchmarks/train_step.py                              # CPU, float32
  python benchmarks/train_step.py --device gpu --dtype bfloat16 --torch-compile
"""

import argparse
import json
import os
import pathlib
import statistics
import time

os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # torch is here too

import jax
import machine
import numpy as np
import torch
import torch_networks
import torch_step

from rkd_jax import distill, models
from rkd_jax.data import augment
from rkd_jax.models.network import Network
from rkd_jax.training import parallel, schedules, state, step

# Network -> (image shape, batch on CPU, batch on GPU).
SIZES = {
    'mlp_256_256': ((28, 28, 1), 128, 4096),
    'cnn_16_32': ((28, 28, 1), 128, 4096),
    'cnn_pool_16_32': ((28, 28, 1), 128, 4096),
    'resnet18': ((32, 32, 3), 32, 512),
    'mobilenet_v2': ((32, 32, 3), 32, 512),
}


def parse(argv=None):
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0],
      formatter_class=argparse.ArgumentDefaultsHelpFormatter)
  parser.add_argument('--networks', nargs='+', choices=list(SIZES), default=[
      'mlp_256_256', 'cnn_16_32', 'resnet18', 'mobilenet_v2'])
  parser.add_argument('--batch', type=int, default=0,
                      help='images a step; 0 takes 32 to 4096 by network and device')
  parser.add_argument('--steps', type=int, default=10, help='PGD steps')
  parser.add_argument('--scan', type=int, default=4,
                      help='training steps between two synchronisations')
  parser.add_argument('--repeats', type=int, default=7,
                      help='timed runs of so many training steps on each side')
  parser.add_argument('--device', choices=('cpu', 'gpu'), default='cpu')
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32',
                      help='compute precision of both sides')
  parser.add_argument('--torch-compile', action='store_true',
                      help='torch.compile, and channels-last images')
  parser.add_argument('--channels-last', action='store_true',
                      help='channels-last images in PyTorch')
  parser.add_argument('--out', type=pathlib.Path, help='JSON file for the results')
  options = parser.parse_args(argv)
  options.channels_last |= options.torch_compile
  return options


def set_up(device):
  """Selects the device on both sides, and all its cores."""
  if device == 'cpu':
    jax.config.update('jax_platforms', 'cpu')
  if jax.default_backend() != device:
    raise SystemExit(f'JAX sees no {device}: {jax.devices()}')
  jax.config.update('jax_enable_compilation_cache', False)  # Compile times are cold.
  torch.set_num_threads(os.cpu_count())
  torch.set_float32_matmul_precision('high')
  torch.backends.cudnn.benchmark = True


class Trainer:
  """The JAX side: the step that `rkd train` runs, compiled as it compiles it.

  Attributes:
    compile_seconds: tracing and compilation, without a cache.
    parameters: of the student.
  """

  def __init__(self, name, image, label, order, options):
    network = Network(models.create(name, num_classes=10, dtype=options.dtype))
    method = distill.make(
        'rslad', {}, threat={'steps': options.steps}, epochs=1)
    tx = schedules.make_optimizer({}, lambda count: 0.1)
    keys = jax.random.split(jax.random.key(0), 3)
    shape = image.shape[1:]
    self.state = jax.device_put(state.create(
        network, shape, tx, {}, init_key=keys[0], train_key=keys[1]))
    frozen = {'teacher': network.init(keys[2], shape)}
    data = jax.device_put({'image': image, 'label': label})
    self.rest = (frozen, data)
    scan = step.make_scan(step.make_train_step(
        method.objective_at(0), distill.Batch, network, {'teacher': network}, tx,
        augment=augment.AUGMENTATIONS['none'], steps_per_epoch=len(order)))
    began = time.perf_counter()
    lowered = parallel.compile_scan(scan, None).lower(self.state, *self.rest, order)
    self.scan = lowered.compile()
    self.compile_seconds = time.perf_counter() - began
    self.parameters = sum(
        leaf.size for leaf in jax.tree.leaves(self.state.variables['params']))

  def run(self, order):
    """The steps of order [K, B]; returns when they are done: losses [K]."""
    self.state, metrics = self.scan(self.state, *self.rest, order)
    return np.asarray(metrics['loss'])


def step_flops(network, shape, batch, steps):
  """Multiplications and additions of one step in dense and convolution layers.

  A backward pass costs one forward pass for the inputs' gradients and one for
  the weights'. The attack needs the former, the two training passes both, but
  not the gradient of the images.
  """
  forward, first = torch_networks.multiplications(network, shape)
  return 2 * batch * (forward + steps * 2 * forward + 2 * (3 * forward - first))


def measure(name, options):
  """One row of the table."""
  shape, *batches = SIZES[name]
  batch = options.batch or batches[options.device == 'gpu']
  rng = np.random.default_rng(0)
  order = np.arange(options.scan * batch, dtype=np.int32).reshape(-1, batch)
  image = rng.integers(0, 256, (order.size, *shape), dtype=np.uint8)
  label = rng.integers(0, 10, order.size, dtype=np.int32)
  theirs = torch_step.Trainer(name, image, label, options)
  flops = step_flops(theirs.student, shape, batch, options.steps)
  ours = Trainer(name, image, label, order, options)
  count = sum(p.numel() for p in theirs.student.parameters())
  if count != ours.parameters:
    raise SystemExit(f'{name}: {ours.parameters} parameters in JAX, {count} in '
                     'PyTorch: these are not the same network')
  began = time.perf_counter()
  theirs.run(order[:1])
  first_step = time.perf_counter() - began
  times = machine.alternate({'torch': lambda: theirs.run(order),
                             'jax': lambda: ours.run(order)}, options.repeats)
  seconds = {side: statistics.median(t) / options.scan for side, t in times.items()}
  return {
      'network': name, 'parameters': count, 'batch': batch,
      'pgd_steps': options.steps, 'gflop_per_step': flops / 1e9,
      'seconds': seconds,
      'all_seconds': {side: [t / options.scan for t in ts]
                      for side, ts in times.items()},
      'images_per_second': {side: batch / s for side, s in seconds.items()},
      'gflops': {side: flops / s / 1e9 for side, s in seconds.items()},
      'time_ratio': seconds['jax'] / seconds['torch'],
      'compile_seconds': ours.compile_seconds,
      'torch_first_step_seconds': first_step}


COLUMNS = ('network', 'batch', 'PGD', 'JAX img/s', 'torch img/s', 'time JAX / torch',
           'JAX GFLOP/s', 'torch GFLOP/s', 'JAX of peak', 'JAX compiles in')


def table_row(row, peak):
  return (row['network'], row['batch'], row['pgd_steps'],
          *(f'{row["images_per_second"][side]:.0f}' for side in ('jax', 'torch')),
          f'**{row["time_ratio"]:.2f}**',
          *(f'{row["gflops"][side]:.0f}' for side in ('jax', 'torch')),
          f'{row["gflops"]["jax"] / peak:.0%}', f'{row["compile_seconds"]:.0f} s')


def print_row(cells):
  print('| ' + ' | '.join(map(str, cells)) + ' |', flush=True)


def main(argv=None):
  options = parse(argv)
  set_up(options.device)
  record = {'machine': machine.describe(options.device),
            'options': {**vars(options), 'out': str(options.out)},
            'matmul_gflops': machine.matmul_rates(options.device, options.dtype)}
  peak = max(record['matmul_gflops'].values())
  print(json.dumps(record['machine']))
  print('matmul GFLOP/s:', {k: round(v) for k, v in record['matmul_gflops'].items()})
  print_row(COLUMNS)
  print_row(['---'] * len(COLUMNS))
  rows = record['rows'] = []
  for name in options.networks:
    rows.append(measure(name, options))
    rows[-1]['peak_fraction'] = {
        side: rate / peak for side, rate in rows[-1]['gflops'].items()}
    print_row(table_row(rows[-1], peak))
    if options.out:
      options.out.write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
  main()
