"""Do certified bounds hold on this device? Bounds there against float64 on the host.

For zero width, where nothing but rounding is between the two sides, and for a ball of eps
0.01 with random corners: the least distance of the true outputs from their bounds, which
must not be negative. And for 3 x 3 convolutions alone: the largest error as a share of
the slack that bounds allow for it, which must not be above 1, whatever algorithm the
device's library chooses.

With --fuzz: bounds of so many random programs by every method, on random sets, with
numbers from 1e-38 to 1e38, against points in them whose outputs are computed on the host
in real arithmetic (see `fuzz/reference.py`). Prints Python code for every violation, NaN
or crash, and exits with 1 if there is one.

  python benchmarks/soundness.py
  python benchmarks/soundness.py --networks cnn_16_32 --methods ibp crown
  python benchmarks/soundness.py --fuzz 10000 --workers 16
  python benchmarks/soundness.py --fuzz 1 --only 1234           # one of them again
"""

import argparse
import functools
import sys

import bounds as table
import jax
import jax.numpy as jnp
import numpy as np
from fuzz import report as fuzz
from jax import lax

from rkd_jax import bounds, models
from rkd_jax.bounds.rounding import gamma
from rkd_jax.models.taps import with_features
from rkd_jax.training import parallel

# Height and width, channels in, channels out, images.
CONVOLUTIONS = ((32, 3, 64, 100), (32, 64, 64, 100), (16, 128, 128, 100),
                (8, 256, 256, 100), (4, 512, 512, 100))


def parse(argv=None):
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0],
      formatter_class=argparse.ArgumentDefaultsHelpFormatter)
  parser.add_argument('--networks', nargs='+', default=['784-256-256-10', 'cnn_16_32'])
  parser.add_argument('--methods', nargs='+', choices=list(table.GOALS),
                      default=list(table.GOALS))
  parser.add_argument('--batch', type=int, default=20)
  parser.add_argument('--corners', type=int, default=20)
  parser.add_argument('--fuzz', type=int, metavar='N', help='random programs to compare')
  parser.add_argument('--seed', type=int, default=0, help='of the random programs')
  parser.add_argument('--workers', type=int, default=1, help='processes that share them')
  parser.add_argument('--only', type=int, metavar='NUMBER',
                      help='only the random program of this number')
  return parser.parse_args(argv)


def on_host(fn):
  """`fn` in float64 on the CPU, of NumPy arrays in and out."""

  def run(*args):
    with jax.enable_x64(True), jax.default_device(jax.devices('cpu')[0]):
      args = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), args)
      return np.asarray(fn(*args))

  return run


def exact(name):
  """fn(params, x) in float64, but for the vectors that are float32 in every network."""
  if name[0].isdigit():
    return on_host(table.dense)
  module = models.create(name, num_classes=10, dtype=jnp.float64)

  def fn(params, x):
    head = params['params']['head']
    vectors = with_features(module, params, x)[1]['features']
    return vectors.astype(jnp.float64) @ head['kernel'] + head['bias']

  return on_host(fn)


def slack(name, method, eps, args):
  """(mean width, least distance of true outputs from their bounds)."""
  fn, params, shape = table.network(name)
  rng = np.random.default_rng(1)
  x = rng.uniform(size=(args.batch, *shape)).astype(np.float32)
  run = parallel.compile_fn(lambda params, ball: getattr(bounds, method)(
      functools.partial(fn, params), ball, None))
  found = run(params, bounds.linf_ball(jnp.asarray(x), eps))
  lower, upper = (np.asarray(side, np.float64) for side in (found.lower, found.upper))
  true, least = exact(name), np.inf
  for _ in range(args.corners if eps else 1):
    y = true(params, x.astype(np.float64) + rng.choice([-eps, eps], size=x.shape))
    least = min(least, (y - lower).min(), (upper - y).min())
  return (upper - lower).mean(), least


def share_of_slack(size, inputs, outputs, batch):
  """The largest error of a convolution, as a share of what bounds allow for."""
  rng = np.random.default_rng(size)
  x = rng.uniform(size=(batch, size, size, inputs)).astype(np.float32)
  kernel = rng.uniform(size=(3, 3, inputs, outputs)).astype(np.float32)
  conv = lambda x, kernel: lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      precision='highest')
  got = np.asarray(parallel.compile_fn(conv)(x, kernel), np.float64)
  true = on_host(conv)(x, kernel)  # Of positive terms: their sum, too.
  return (np.abs(got - true) / (gamma(9 * inputs, np.float32) * true)).max()


def main(argv=None):
  args = parse(argv)
  if args.fuzz:
    sys.exit(fuzz.main(args.fuzz, args.seed, args.workers, args.only))
  print(jax.devices()[0].device_kind)
  print('| network | method | eps | mean width | least distance |\n'
        '| --- | --- | ---: | ---: | ---: |')
  for name in args.networks:
    for method in args.methods:
      for eps in (0.0, 0.01):
        width, least = slack(name, method, eps, args)
        print(f'| {name} | {method} | {eps} | {width:.2e} | {least:.2e} |', flush=True)
  print('\n| 3 x 3 convolution | error / slack |\n| --- | ---: |')
  for size, inputs, outputs, batch in CONVOLUTIONS:
    share = share_of_slack(size, inputs, outputs, batch)
    print(f'| {size} x {size}, {inputs} to {outputs} | {share:.4f} |', flush=True)


if __name__ == '__main__':
  main()
