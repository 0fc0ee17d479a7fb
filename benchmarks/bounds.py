"""Seconds and widths of certified bounds, by method, and how they grow.

A dense ReLU network with random weights (PyTorch's default distribution, fixed seed),
images uniform in [0, 1], an L-inf ball without a box. Margins means: lower bounds of
the nine differences to the predicted class. Medians of repeated calls after one that
is not timed; compilation apart, without a cache.

  python benchmarks/bounds.py --out bounds.json                  # the table
  python benchmarks/bounds.py --growth docs/bounds_growth.png    # and the plot
  python benchmarks/bounds.py --network resnet18 --batch 128     # for a GPU
  python benchmarks/bounds.py --network resnet18 --batch 1 --image 8 --eps 1e-3
"""

import argparse
import functools
import json
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax import bounds, models
from rkd_jax.models.network import Network
from rkd_jax.report import provenance
from rkd_jax.training import parallel

GOALS = {'ibp': 0.005, 'crown_ibp': 0.02, 'crown': 0.15, 'alpha_crown': 1.5}


def parse(argv=None):
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0],
      formatter_class=argparse.ArgumentDefaultsHelpFormatter)
  parser.add_argument('--network', default='784-256-256-10',
                      help='sizes of a dense network, or a name of the registry')
  parser.add_argument('--image', type=int, default=32,
                      help='height and width of the images of a registry network')
  parser.add_argument('--batch', type=int, default=100)
  parser.add_argument('--eps', type=float, nargs='+', default=[0.01, 0.05])
  parser.add_argument('--methods', nargs='+', choices=list(GOALS), default=list(GOALS))
  parser.add_argument('--repeats', type=int, default=15)
  parser.add_argument('--growth', help='PNG of times against batch, width and depth')
  parser.add_argument('--out', help='JSON with every time')
  return parser.parse_args(argv)


def network(name, seed=0, image=32):
  """(fn(params, x), params, image shape); `image` for names of the registry."""
  if name[0].isdigit():
    sizes = [int(size) for size in name.split('-')]
    rng = np.random.default_rng(seed)
    params = [tuple(jnp.asarray(rng.uniform(-1, 1, shape) / np.sqrt(n), jnp.float32)
                    for shape in ((n, m), (m,)))
              for n, m in zip(sizes[:-1], sizes[1:])]
    return dense, params, (sizes[0],)
  net = Network(models.create(name, num_classes=10))
  shape = (image, image, 3)
  return net.predict, net.init(jax.random.key(seed), shape), shape


def dense(params, x):
  for i, (weight, bias) in enumerate(params):
    x = x @ weight + bias
    x = jax.nn.relu(x) if i < len(params) - 1 else x
  return x


def measure(name, batch, eps, method, repeats, margins=True, image=32):
  """Seconds of each call, of compilation, and the mean width of the outputs."""
  fn, params, shape = network(name, image=image)
  x = jnp.asarray(np.random.default_rng(1).uniform(size=(batch, *shape)), jnp.float32)
  labels = jnp.argmax(fn(params, x), axis=1)
  ball = bounds.linf_ball(x, eps)
  spec = bounds.margins(labels, 10) if margins else None
  run = parallel.compile_fn(lambda params, ball, spec: getattr(bounds, method)(
      functools.partial(fn, params), ball, spec, upper=not margins))
  began = time.perf_counter()
  program = run.lower(params, ball, spec).compile()
  compiled = time.perf_counter() - began
  found = jax.block_until_ready(program(params, ball, spec))
  seconds = []
  for _ in range(repeats):
    began = time.perf_counter()
    jax.block_until_ready(program(params, ball, spec))
    seconds.append(time.perf_counter() - began)
  memory = program.memory_analysis()
  return {'method': method, 'network': name, 'batch': batch, 'eps': eps,
          'what': 'margins' if margins else 'outputs', 'seconds': seconds,
          'median': statistics.median(seconds), 'compile': compiled,
          'mean lower': float(found.lower.mean()),
          'temporary MB': memory.temp_size_in_bytes / 2**20,
          'mean width': None if margins else float((found.upper - found.lower).mean())}


def line(row):
  goal = GOALS[row['method']] if row['what'] == 'margins' else None
  width = '-' if row['mean width'] is None else f'{row["mean width"]:.3f}'
  least = min(row['seconds'])
  return (f'| {row["method"]} | {row["eps"]} | {row["what"]} | {row["median"]:.4f} | '
          f'{least:.4f} | {goal or "-"} | {width} | {row["mean lower"]:.3f} | '
          f'{row["compile"]:.1f} | {row["temporary MB"]:.0f} |')


def growth(path, repeats):
  """Times against batch, width and depth, one at a time, as a picture."""
  import matplotlib
  matplotlib.use('Agg')
  import matplotlib.pyplot as plt
  base = {'batch': 100, 'width': 256, 'depth': 2}
  axes_of = {'batch': (1, 10, 100, 300), 'width': (64, 128, 256, 512),
             'depth': (1, 2, 4, 6)}
  figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True)
  rows = []
  for axis, (what, values) in zip(axes, axes_of.items()):
    for method in GOALS:
      times = []
      for value in values:
        size = {**base, what: value}
        name = '-'.join(map(str, (784, *[size['width']] * size['depth'], 10)))
        rows.append(measure(name, size['batch'], 0.01, method, repeats))
        times.append(rows[-1]['median'])
      axis.plot(values, times, marker='o', label=method)
    axis.set(xlabel=f'{what} (otherwise {base[what]})', xscale='log', yscale='log')
    axis.set_xticks(values, map(str, values))
    axis.minorticks_off()
    axis.grid(alpha=0.3)
  axes[0].set_ylabel('seconds, all nine margins')
  axes[0].legend(frameon=False)
  figure.tight_layout()
  figure.savefig(path, dpi=130)
  return rows


def main():
  args = parse()
  rows = []
  print('| method | eps | of | median s | least s | goal s | mean width | mean lower '
        '| compile s | temporary MB |')
  print('| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |')
  for eps in args.eps:
    for method in args.methods:
      for margins in (True, False):
        rows.append(measure(args.network, args.batch, eps, method, args.repeats,
                            margins, args.image))
        print(line(rows[-1]), flush=True)
  record = {**provenance.describe(), 'rows': rows}
  if args.growth:
    record['growth'] = growth(args.growth, max(3, args.repeats // 3))
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps(record, indent=1))
  print({k: v for k, v in record.items() if k not in ('rows', 'growth')})


if __name__ == '__main__':
  main()
