"""Damages one file of a run at a time, runs the same command again, compares every bit.

    python benchmarks/damage.py --trials 200 [--seed 0] [--out damage.json]

Finished and half-finished runs of `kills.py` (those killed at a random operation) get one
flipped bit, or are cut, in one file drawn at random; TensorBoard's, which nothing reads,
are left alone. The same command then ends with the files of the undisturbed run, or says
in one line which file is wrong, or does not use the file (a checkpoint of a finished run,
checked when it is needed). All else is printed, and the exit code is 1.
"""

import argparse
import collections
import pathlib
import random
import shutil
import sys
import tempfile
import time

import kills


def damage(path: pathlib.Path, chance: random.Random) -> str:
  """Flips a bit of a file or cuts it; what was done."""
  content = bytearray(path.read_bytes())
  if chance.random() < 0.5:
    place = chance.randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    return f'bit {place} flipped'
  size = chance.randrange(len(content))
  path.write_bytes(content[:size])
  return f'cut to {size} of {len(content)} bytes'


def candidates(run: pathlib.Path) -> list[pathlib.Path]:
  """Files of a run that can be damaged."""
  return sorted(path for path in run.rglob('*') if path.is_file() and path.stat().st_size
                and 'tensorboard' not in path.parts)


def names_it(shown: str, run: pathlib.Path, file: pathlib.Path) -> bool:
  """Whether a line names the file, or the checkpoint or folder that it is part of."""
  parts = file.relative_to(run).parts
  if 'checkpoints' in parts:
    step = parts[parts.index('checkpoints') + 1]
    return f'checkpoint {step} ' in shown or f'/{step}/metrics' in shown
  return str(file) in shown or f'{file.parent}: ' in shown


def half_finished(runner, name, run, operations, chance) -> None:
  """A run that was killed, in its directory."""
  kills.prepare(runner, name, run)
  runner.run(name, run, chance.randint(operations // 4, operations),
             chance.random() < 0.5)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--trials', type=int, default=200)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--out', default='')
  args = parser.parse_args()
  chance, began = random.Random(args.seed), time.perf_counter()
  table = collections.defaultdict(collections.Counter)
  wrong = []
  with tempfile.TemporaryDirectory() as place:
    runner = kills.Runner(pathlib.Path(place))
    run = runner.folder / 'run'
    expected = {name: kills.undisturbed(runner, name, run) for name in kills.COMMANDS}
    for number in range(args.trials):
      name = list(kills.COMMANDS)[number % len(kills.COMMANDS)]
      wanted, operations = expected[name]
      finished = bool(number // len(kills.COMMANDS) % 2)
      shutil.rmtree(run, ignore_errors=True)
      if finished:
        shutil.copytree(runner.folder / f'finished-{name}', run)
      else:
        half_finished(runner, name, run, operations, chance)
      file = chance.choice(candidates(run))
      done = damage(file, chance)
      code, _, shown = runner.run(name, run)
      named = names_it(shown, run, file)
      unused = False
      try:
        same = not kills.differences(wanted, kills.content(run))
      except Exception as error:  # What is damaged still is.
        same = False
        unused = 'checkpoints' in file.parts and code == 0 and not shown.count('warning')
        shown += f'\n{error!r}'
      clean = 'Traceback' not in shown
      kind = ('healed' if code == 0 and same else
              'unused' if unused else 'named' if named and clean else 'SILENT')
      if code and len([line for line in shown.splitlines() if 'rkd: ' in line
                       and 'warning' not in line]) != 1:
        kind = 'NOT ONE LINE'
      table['finished' if finished else 'half-finished'][kind] += 1
      table[name][kind] += 1
      if kind not in ('healed', 'unused', 'named') or not clean:
        wrong.append({'command': name, 'file': str(file.relative_to(run)), 'done': done,
                      'finished': finished, 'code': code, 'shown': shown[-1500:]})
        print(wrong[-1], flush=True)
      if number % 10 == 9:
        print(f'{number + 1} trials, {time.perf_counter() - began:.0f} s: '
              f'{ {key: dict(of) for key, of in table.items()} }', flush=True)
  return kills.report(args, {
      'trials': args.trials, 'seed': args.seed, 'wrong': wrong,
      'seconds': round(time.perf_counter() - began), 'table': table})


if __name__ == '__main__':
  kills.with_shim()
  sys.exit(main())
