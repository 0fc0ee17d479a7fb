"""Verified, falsified, unknown: branch and bound on MNIST networks.

The first 15 test images, as in the `mnistfc` benchmark of VNN-COMP 2021, on networks
that `rkd train --config configs/mnist_mlp.py:x2` (x4, x6) made. Images that the network
gets wrong count as falsified at once. Every counterexample was checked in float64 by
`verify`; with --attack every verified image is attacked by PGD, the restarts shared
out among its margins.

  python benchmarks/verify.py --runs runs/mnist_x2 runs/mnist_x4 runs/mnist_x6 \\
      --data-dir DIR --timeout 120 --out verify.json
"""

import argparse
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax import bounds, data, models
from rkd_jax.bounds import falsify, reading
from rkd_jax.models import weights
from rkd_jax.models.network import Network
from rkd_jax.report import provenance


def parse(argv=None):
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0],
      formatter_class=argparse.ArgumentDefaultsHelpFormatter)
  parser.add_argument('--runs', nargs='+', required=True)
  parser.add_argument('--data-dir', default=None)
  parser.add_argument('--eps', type=float, nargs='+', default=[0.03, 0.05])
  parser.add_argument('--images', type=int, default=15)
  parser.add_argument('--timeout', type=float, default=120.0)
  parser.add_argument('--batch', type=int, default=64)
  parser.add_argument('--attack', type=int, default=0, metavar='RESTARTS',
                      help='attack what was verified with so many restarts an image')
  parser.add_argument('--out')
  return parser.parse_args(argv)


def load(run):
  """The network of a run as a function of images."""
  folder = pathlib.Path(run)
  name = json.loads((folder / 'config.json').read_text())['model']
  net = Network(models.create(name, num_classes=10))
  variables = weights.load(folder / 'weights' / 'student-best.safetensors',
                           weights.template(net.module, (28, 28, 1)))
  return functools.partial(net.predict, variables)


def attacked(fn, ball, spec, chosen, restarts):
  """How many of the chosen examples an attack with many restarts breaks."""
  broken = 0
  graph = reading.read(fn, ball)
  at_once, margins = 100, spec.constant.shape[1]
  attack = jax.jit(functools.partial(falsify.attack, graph, steps=40, restarts=at_once))
  for i in chosen:
    one = jax.tree.map(lambda a, i=i: a[i:i + 1], (ball, spec))
    least = min(float(attack(*one, jax.random.key(k))[1][0])
                for k in range(-(-restarts // (at_once * margins))))
    broken += least <= 0
  return broken


def main():
  args = parse()
  test = data.load('mnist', data_dir=args.data_dir).test
  images = jnp.asarray(test.image[:args.images], jnp.float32) / 255
  labels = jnp.asarray(test.label[:args.images])
  record = {**provenance.describe(), 'timeout_s': args.timeout, 'rows': []}
  print('| run | eps | verified | falsified | unknown | median s | mean s | '
        'subproblems | attacked: broken |')
  print('| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |')
  for run in args.runs:
    fn = load(run)
    for eps in args.eps:
      ball = bounds.linf_ball(images, eps, lower=0.0, upper=1.0)
      spec = bounds.margins(labels, 10)
      found = bounds.verify(fn, ball, spec, timeout_s=args.timeout, batch=args.batch)
      count = {s: int(np.sum(found.status == s))
               for s in ('verified', 'falsified', 'unknown')}
      chosen = np.flatnonzero(found.status == 'verified')
      broken = (attacked(fn, ball, spec, chosen, args.attack) if args.attack else '-')
      record['rows'].append({
          'run': run, 'eps': eps, **count, 'status': list(map(str, found.status)),
          'lower': found.lower.tolist(), 'seconds': found.seconds.tolist(),
          'subproblems': found.subproblems.tolist(), 'broken': broken})
      print(f'| {pathlib.Path(run).name} | {eps} | {count["verified"]} | '
            f'{count["falsified"]} | {count["unknown"]} | '
            f'{np.median(found.seconds):.2f} | {np.mean(found.seconds):.1f} | '
            f'{found.subproblems.sum()} | {broken} |', flush=True)
      if args.out:
        pathlib.Path(args.out).write_text(json.dumps(record, indent=1))
  print({k: v for k, v in record.items() if k != 'rows'})


if __name__ == '__main__':
  main()
