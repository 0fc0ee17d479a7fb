"""Verdicts of AutoAttack standard beside those of the authors' code, image by image.

The authors' code is that of the PyPI package `pyautoattack` (Croce, Hein and others,
MIT), which wants PyTorch; neither is a dependency of rkd_jax. For the CPU:

  pip install --no-deps pyautoattack && pip install torch==2.13.0
  python benchmarks/autoattack_reference.py --run RUN --data-dir DIR --norm linf

Both attack the same cnn_16_32 with the weights of a finished run, on the same test
images, each stage on the survivors of those before. Seconds are without compiling.
"""

import functools
import importlib.metadata
import json
import logging
import pathlib
import time

import autoattack
import jax
import machine
import numpy as np
import pyautoattack
import torch

from rkd_jax.evaluation import robustness

NAMES = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}


def parse(argv=None):
  parser = autoattack.parser_of(__doc__, examples=200, needs_run=True)
  parser.add_argument('--norm', choices=NAMES, default='linf')
  parser.add_argument('--seeds', type=int, default=1, help='of each side')
  parser.add_argument('--threads', type=int, default=1, help='of PyTorch')
  parser.add_argument('--out', type=pathlib.Path, help='JSON with every verdict')
  return parser.parse_args(argv)


def theirs(model, images, labels, *, eps, norm, seed):
  """({'clean' or stage: bool[N]}, {stage: seconds}), cumulative, of the authors' code."""
  attack = pyautoattack.AutoAttack(model, norm=NAMES[norm], eps=eps, seed=seed)
  stages = list(attack.attacks_to_run)
  with torch.no_grad():
    right = model(images).argmax(1) == labels
  robust, seconds = {'clean': right.numpy().copy()}, {}
  for stage in stages:  # One at a time on the survivors, as `standard` does.
    attack.version, attack.attacks_to_run = 'custom', [stage]
    left = torch.nonzero(right)[:, 0]
    began = time.perf_counter()
    if len(left):
      adv, _ = attack.run_standard_evaluation(images[left], labels[left],
                                              batch_size=len(left))
      with torch.no_grad():
        right[left] = model(adv).argmax(1) == labels[left]
    seconds[stage] = time.perf_counter() - began
    robust[stage] = right.numpy().copy()
  return robust, seconds


def ours(network, variables, split, *, eps, norm, seed):
  """As `theirs`, of rkd_jax; without the seconds of compiling."""
  found = robustness.autoattack(
      network, variables, split, 'autoattack', eps=eps, norm=norm,
      key=jax.random.key(seed), batch_size=len(split.label))
  return found.robust, {report.name: report.seconds for report in found.reports}


def report(name, robust, seconds):
  """A line a stage."""
  for stage, right in robust.items():
    print(f'| {name} | {stage} | {right.mean():.1%} | {int(right.sum())} | '
          f'{seconds.get(stage, 0):.1f} |', flush=True)


def main(argv=None):
  args = parse(argv)
  torch.set_num_threads(args.threads)
  logging.getLogger('auto-attack').setLevel(logging.ERROR)
  network, variables, split = autoattack.load(args)
  model = autoattack.to_torch(variables['params'])
  pixels = split.image.astype(np.float32) / np.float32(255)
  images = torch.tensor(pixels.transpose(0, 3, 1, 2).copy())
  labels = torch.tensor(split.label.astype(np.int64))
  gap = np.abs(model(images).numpy()
               - np.asarray(jax.jit(network.predict)(variables, pixels))).max()
  described = machine.describe('cpu') | {
      'pyautoattack': importlib.metadata.version('pyautoattack')}
  print(json.dumps(described), f'\nlogits differ by at most {gap:.1e}')
  print('| side | stage | robust | images | seconds |\n'
        '| --- | --- | ---: | ---: | ---: |')
  sides = {'rkd_jax': functools.partial(ours, network, variables, split),
           'pyautoattack': functools.partial(theirs, model, images, labels)}
  runs = []
  for seed in range(args.seeds):
    for side, attack in sides.items():
      robust, seconds = attack(eps=args.eps, norm=args.norm, seed=seed)
      report(f'{side}, seed {seed}', robust, seconds)
      runs.append({'side': side, 'seed': seed, 'seconds': seconds,
                   'robust': {stage: right.tolist() for stage, right in robust.items()}})
  final = lambda side: np.array([
      list(run['robust'].values())[-1] for run in runs if run['side'] == side])
  us, them = (final(side) for side in sides)
  print(f'right under every seed of one side, broken under one of the other: '
        f'ours {np.flatnonzero(us.all(0) & ~them.all(0)).tolist()}, '
        f'theirs {np.flatnonzero(them.all(0) & ~us.all(0)).tolist()}')
  print(f'verdicts that differ at seed 0: {np.flatnonzero(us[0] != them[0]).tolist()}')
  if args.out:
    args.out.write_text(json.dumps({
        'machine': described, 'options': {**vars(args), 'out': str(args.out)},
        'runs': runs}) + '\n')


if __name__ == '__main__':
  main()
