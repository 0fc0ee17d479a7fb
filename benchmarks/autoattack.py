"""Seconds of AutoAttack standard (L-inf), JAX beside PyTorch, same weights and images.

The network is a cnn_16_32: that of a finished run on MNIST, on its first test images,
or (without --run) one with random weights on random images, of which little is right,
so that it only shows that both sides run. JAX runs `rkd_jax.attacks.autoattack`, PyTorch
torch_autoattack.py, stage by stage in one process; JAX once to compile, then both in
turn. Medians of the repeats; every time is in the JSON.

  python benchmarks/autoattack.py --run runs/mnist_family/seed0/teachers/robust
"""

import argparse
import functools
import json
import os
import pathlib
import time

import jax
import machine
import numpy as np
import torch
import torch_autoattack
import torch_networks

from rkd_jax import config as configuration
from rkd_jax import experiment, models
from rkd_jax.evaluation import robustness
from rkd_jax.models.network import Network
from rkd_jax.stages import build
from rkd_jax.stages.trained import best_student

MODEL, SHAPE = 'cnn_16_32', (28, 28, 1)


def parser_of(description, *, examples, needs_run=False):
  """Arguments that say what is attacked, for `load`."""
  parser = argparse.ArgumentParser(
      description=description.splitlines()[0],
      formatter_class=argparse.ArgumentDefaultsHelpFormatter)
  parser.add_argument('--run', required=needs_run,
                      help=f'directory of a finished run of {MODEL}')
  parser.add_argument('--data-dir', default='', help='else that of the run')
  parser.add_argument('--examples', type=int, default=examples)
  parser.add_argument('--eps', type=float, default=0.3)
  return parser


def parse(argv=None):
  parser = parser_of(__doc__, examples=1000)
  parser.add_argument('--batch', type=int, default=500)
  parser.add_argument('--steps', type=int, default=100, help='of APGD and FAB')
  parser.add_argument('--queries', type=int, default=5000, help='of Square')
  parser.add_argument('--repeats', type=int, default=1)
  parser.add_argument('--out', type=pathlib.Path, help='JSON with every value')
  return parser.parse_args(argv)


def load(args):
  """(network, variables, split of uint8 images)."""
  if args.run:
    config = configuration.read(args.run)
    config.data.data_dir = args.data_dir or config.data.data_dir
    dataset = experiment.check(config)
    return *best_student(config, pathlib.Path(args.run), dataset), build.first(
        dataset.test, args.examples)
  from rkd_jax.data.dataset import Split
  network = Network(models.create(MODEL, num_classes=10))
  rng = np.random.default_rng(0)
  return network, network.init(jax.random.key(0), SHAPE), Split(
      rng.integers(0, 256, (args.examples, *SHAPE), np.uint8),
      rng.integers(0, 10, args.examples).astype(np.int32))


def to_torch(params):
  """The same network in PyTorch."""
  model = torch_networks.NETWORKS[MODEL]()
  layers = [m for m in model if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
  ours = [layer for _, layer in sorted(
      _layers(params), key=lambda item: (item[1]['kernel'].ndim == 2, item[0]))]
  with torch.no_grad():
    previous = None
    for layer, its in zip(layers, ours, strict=True):
      kernel = np.asarray(its['kernel'])
      if kernel.ndim == 4:
        kernel = kernel.transpose(3, 2, 0, 1)
      elif previous == 4:  # NHWC was flattened; here it is NCHW.
        side = round((kernel.shape[0] / layers[1].out_channels)**0.5)
        kernel = kernel.reshape(side, side, -1, kernel.shape[1]).transpose(
            3, 2, 0, 1).reshape(kernel.shape[1], -1)
      else:
        kernel = kernel.T
      previous = its['kernel'].ndim
      layer.weight.copy_(torch.tensor(kernel.copy()))
      layer.bias.copy_(torch.tensor(np.asarray(its['bias']).copy()))
  return model.eval().requires_grad_(False)


def _layers(params, path=''):
  for name, value in params.items():
    if 'kernel' in value:
      yield path + name, value
    else:
      yield from _layers(value, path + name + '/')


def main(argv=None):
  args = parse(argv)
  jax.config.update('jax_enable_compilation_cache', False)  # Compile times are cold.
  torch.set_num_threads(os.cpu_count())
  network, variables, split = load(args)
  model = to_torch(variables['params'])
  pixels = split.image.astype(np.float32) / np.float32(255)
  images = torch.tensor(pixels.transpose(0, 3, 1, 2).copy())
  labels = torch.tensor(split.label.astype(np.int64))
  np.testing.assert_allclose(model(images[:50]).numpy(), np.asarray(
      jax.jit(network.predict)(variables, pixels[:50])), rtol=1e-3, atol=1e-3)
  ours = functools.partial(
      robustness.autoattack, network, variables, split, 'autoattack', eps=args.eps,
      norm='linf', key=jax.random.key(0), batch_size=args.batch, steps=args.steps,
      queries=args.queries)
  began = time.perf_counter()
  first = ours()
  cold = time.perf_counter() - began
  runs = []
  for _ in range(args.repeats):
    began = time.perf_counter()
    right, theirs = torch_autoattack.autoattack(
        model, images, labels, eps=args.eps, steps=args.steps, queries=args.queries,
        batch=args.batch)
    between = time.perf_counter()
    result = ours()
    runs.append({
        'jax': [report.seconds for report in result.reports] + [
            time.perf_counter() - between],
        'torch': [seconds for *_, seconds in theirs] + [between - began]})
  median = {side: np.median([run[side] for run in runs], axis=0)
            for side in ('jax', 'torch')}
  record = {'machine': machine.describe('cpu'), 'options': {
      **vars(args), 'out': str(args.out)}, 'rows': [], 'runs': runs}
  print(json.dumps(record['machine']))
  print('| stage | robust JAX | robust torch | JAX s | torch s | JAX / torch | '
        'JAX compiles in |')
  print('| --- | ---: | ---: | ---: | ---: | ---: | ---: |')

  def row(name, robust, others, at, compiling):
    seconds, of_torch = float(median['jax'][at]), float(median['torch'][at])
    record['rows'].append({
        'stage': name, 'robust_jax': robust, 'robust_torch': others, 'seconds': seconds,
        'torch_seconds': of_torch, 'compile_seconds': compiling})
    print(f'| {name} | {robust:.1%} | {others:.1%} | {seconds:.1f} | {of_torch:.1f} | '
          f'**{seconds / max(of_torch, 1e-9):.2f}** | {compiling:.1f} s |')

  for at, (report, compiled, (name, robust, _)) in enumerate(zip(
      result.reports, first.reports, theirs, strict=True)):
    assert report.name == name
    row(name, report.robust_accuracy, robust, at, compiled.compile_seconds)
  row('all', float(result.survived.mean()), right.double().mean().item(), -1,
      sum(report.compile_seconds for report in first.reports))
  both = np.mean(result.survived == right.numpy())
  print(f'same verdict on {both:.1%} of the images; JAX with compilation: {cold:.1f} s')
  if args.out:
    args.out.write_text(json.dumps({**record, 'same_verdict': float(both),
                                    'cold_seconds': cold}, indent=2) + '\n')


if __name__ == '__main__':
  main()
