"""How tight and how fast: EmpLB and every FaithUB of one pair of networks.

The pair is that of a finished run, on the first test images that its teacher gets
right, or (without --run) two dense ReLU networks with random weights on random images.
Medians of repeated calls after one that is not timed; compilation apart, without a
cache. Both sides are means over the examples; the searches report the lower bound that
they found themselves, and the seconds of all examples together.

  python benchmarks/faithfulness.py --run runs/fd_mnist/seed0/students/FD --eps 0.05
  python benchmarks/faithfulness.py --eps 0.01 0.03 --examples 20 --student 784-64-64-10
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
from bounds import network

from rkd_jax import bounds, certification, faithfulness
from rkd_jax.bounds.compiled import Compiled
from rkd_jax.faithfulness.certified import PURE, SEARCHES
from rkd_jax.report import provenance
from rkd_jax.stages import certify


def parse(argv=None):
  parser = argparse.ArgumentParser(
      description=__doc__.splitlines()[0],
      formatter_class=argparse.ArgumentDefaultsHelpFormatter)
  parser.add_argument('--run', help='directory of a finished student')
  parser.add_argument('--teacher', default='784-256-256-10', help='without --run')
  parser.add_argument('--student', default='784-128-128-10', help='without --run')
  parser.add_argument('--eps', type=float, nargs='+', default=[0.05])
  parser.add_argument('--examples', type=int, default=100)
  parser.add_argument('--methods', nargs='+', choices=(*PURE, *SEARCHES),
                      default=list(PURE))
  parser.add_argument('--predicted', action='store_true',
                      help='the class that the teacher predicts alone, not all')
  parser.add_argument('--timeout', type=float, default=60.0,
                      help='seconds an example for branch and bound, a program for milp')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--out', help='JSON with every value')
  return parser.parse_args(argv)


def pair(args):
  """(teacher, student, images): two functions of images, and where to look."""
  if args.run:
    config, dataset, *networks = certification.load(args.run)
    images, _ = certify.first_right(config, dataset, networks[0], args.examples)
    return *(functools.partial(n.network.predict, n.variables) for n in networks), (
        jnp.asarray(images))
  fns = []
  for name in (args.teacher, args.student):
    fn, params, shape = network(name, seed=len(fns))
    fns.append(functools.partial(fn, params))
  images = np.random.default_rng(1).uniform(size=(args.examples, *shape))
  return *fns, jnp.asarray(images, jnp.float32)


def timed(function, ball, repeats):
  """(result, seconds of each call, seconds of compilation)."""
  compiled, began = Compiled(), time.perf_counter()
  result, _ = compiled('it', function, ball)
  compiling = time.perf_counter() - began
  seconds = [compiled('it', function, ball)[1] for _ in range(repeats)]
  return result, seconds, compiling - min(seconds)


def main():
  args = parse()
  teacher, student, images = pair(args)
  record = {**provenance.describe(), 'arguments': vars(args), 'rows': []}
  print('| method | eps | EmpLB | FaithUB | ratio | seconds | compile s |')
  print('| --- | ---: | ---: | ---: | ---: | ---: | ---: |')

  def row(method, eps, lower, upper, seconds, compiling):
    values = [np.asarray(a, float) for a in (lower, upper)]
    low, high = (float(v.mean()) for v in values)
    record['rows'].append({
        'method': method, 'eps': eps, 'lower': values[0].tolist(),
        'upper': values[1].tolist(), 'seconds': seconds, 'compile': compiling})
    print(f'| {method} | {eps} | {low:.4f} | {high:.4f} | {high / low:.2f} | '
          f'{statistics.median(seconds):.3f} | {compiling:.1f} |', flush=True)
    if args.out:
      pathlib.Path(args.out).write_text(json.dumps(record, indent=1))

  classes = jnp.argmax(teacher(images), axis=1) if args.predicted else None
  for eps in args.eps:
    ball = bounds.linf_ball(images, eps, lower=0.0, upper=1.0)
    found, seconds, compiling = timed(lambda ball: faithfulness.emp_lb(
        teacher, student, ball, key=jax.random.key(0), classes=classes), ball,
        min(2, args.repeats))
    row('EmpLB', eps, found, found, seconds, compiling)
    for method in args.methods:
      if method in SEARCHES:
        began = time.perf_counter()
        bracket = SEARCHES[method](
            teacher, student, ball, classes=classes, timeout_s=args.timeout)
        total = float(bracket.seconds.sum())
        row(method, eps, bracket.lower, bracket.upper, [total],
            time.perf_counter() - began - total)
      else:
        upper, seconds, compiling = timed(functools.partial(
            faithfulness.faith_ub, teacher, student, method=method, classes=classes),
            ball, args.repeats)
        row(method, eps, found, upper, seconds, compiling)
  print({k: v for k, v in record.items() if k != 'rows'})


if __name__ == '__main__':
  main()
