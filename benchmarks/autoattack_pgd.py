"""AutoAttack standard against PGD-100 with 10 restarts, image by image (L-inf).

The more steps and restarts PGD has, the nearer it should come to AutoAttack; were its
robust accuracy the lower one, AutoAttack would be broken.

  python benchmarks/autoattack_pgd.py --run RUN --data-dir DIR --examples 500
"""

import json
import time

import autoattack
import jax
import machine
import numpy as np

from rkd_jax.evaluation import robustness


def parse(argv=None):
  parser = autoattack.parser_of(__doc__, examples=500, needs_run=True)
  parser.add_argument('--steps', type=int, default=100, help='of PGD')
  parser.add_argument('--restarts', type=int, default=10, help='of PGD')
  return parser.parse_args(argv)


def main(argv=None):
  args = parse(argv)
  network, variables, split = autoattack.load(args)
  given = {'eps': args.eps, 'steps': args.steps, 'restarts': args.restarts}
  attacks = {'clean': robustness.AttackSpec('clean')}
  for share in (4, 10):  # Its step size is the one thing that PGD has to be told.
    for kind in ('pgd', 'cw'):
      attacks[f'{kind}, step eps/{share}'] = robustness.AttackSpec(
          kind, step_size=args.eps / share, **given)
  attacks['autoattack'] = robustness.AttackSpec('autoattack', eps=args.eps)
  print(json.dumps(machine.describe('cpu')))
  print('| attack | right | robust | seconds, with compiling |\n'
        '| --- | ---: | ---: | ---: |')
  right = {}
  for name, spec in attacks.items():
    began = time.perf_counter()
    right[name] = robustness.correct(network, variables, split, spec,
                                     key=jax.random.key(0), batch_size=args.examples)
    print(f'| {name} | {right[name].sum()} | {right[name].mean():.1%} | '
          f'{time.perf_counter() - began:.0f} |', flush=True)
  aa = right.pop('autoattack')
  pgd = np.logical_and.reduce(list(right.values()))
  print(f'right after all PGD: {pgd.sum()}; after AutoAttack: {aa.sum()}; broken by PGD '
        f'alone: {np.flatnonzero(aa & ~pgd).tolist()}, by AutoAttack alone: '
        f'{np.flatnonzero(pgd & ~aa).tolist()}')


if __name__ == '__main__':
  main()
