"""Kills `rkd` at file operations, runs the same command again, compares every bit.

    python benchmarks/kills.py --kills 200 [--seed 0] [--out kills.json]

Each kill is a SIGKILL at one operation below the run's directory (an open for writing, a
write, rename, unlink, mkdir, fsync or truncation, by Python or by a C++ library), drawn
at random from all those of an undisturbed run; every second one that meets a write leaves
half of it in the file. The command then runs again without a disturbance, and its files
are compared with those of the undisturbed run. Linux with gcc; CPU.
"""

import argparse
import collections
import ctypes
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
SMALL = {
    'model': 'mlp_8', 'devices': 1,
    'data': {'name': 'digits', 'train_examples': 256, 'test_examples': 60},
    'train': {'epochs': 3, 'batch_size': 64, 'checkpoint_every': 1},
    'validation': {'every': 2, 'examples': 30},
    'evaluation': {'attacks': ('clean',), 'batch_size': 30},
}
TEACHER = {'train': {'epochs': 1}, 'validation': {'every': 1}}
CONFIGS = {
    'train': {
        **SMALL, 'method': 'rslad', 'attack': {'eps': 0.1, 'step_size': 0.05, 'steps': 1},
        'validation': {**SMALL['validation'], 'attack': 'fgsm'},
        'teachers': {'robust': {'overrides': {'method': 'pgd_at', **TEACHER}}}},
    'detox': {**SMALL, 'method': 'sd', 'single_teacher': 'poisoned', 'teachers': {
        'poisoned': {'overrides': {'method': 'standard', **TEACHER,
                                   'backdoor': {'trigger': 'badnets'}}}},
              'detox': {'method': 'finetune', 'options': {'steps': 3}, 'share': 0.5}},
    'compare': {**SMALL, 'method': 'sd', 'single_teacher': 'clean', 'train': {
        **SMALL['train'], 'epochs': 2}, 'teachers': {
            'clean': {'overrides': {'method': 'standard', **TEACHER}}},
                'compare': {'seeds': (0,), 'students': (
                    ('SD', {}), ('plain', {'method': 'standard'}))}},
}
# What is done, and in a copy of which finished run.
COMMANDS = {
    'train': (['train', '--config', '{config}', '--workdir', '{run}'], None),
    'detox': (['train', '--config', '{config}', '--workdir', '{run}'], None),
    'compare': (['compare', '--config', '{config}', '--workdir', '{run}'], None),
    'certify': (['certify', '--workdir', '{run}', '--eps', '0.01,0.02', '--examples',
                 '30', '--method', 'crown_ibp'], 'train'),
    'evaluate': (['evaluate', '--workdir', '{run}', '--attack', 'autoattack_fast',
                  '--examples', '60', '--eps', '0.02', '--save-images'], 'train'),
}
# Times differ; orbax and TensorBoard stamp their files with them.
_TIMES = ('seconds', 'compile_seconds', 'seconds_from_step', 'images_per_second',
          'digest')


class Runner:
  """Runs commands in children that have everything imported, for speed."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self._shim = ctypes.CDLL(os.environ['LD_PRELOAD'])
    from matplotlib.backends import backend_agg  # noqa: F401
    from PIL import PngImagePlugin  # noqa: F401

    from rkd_jax import attack_table, certification, cli, comparison, data  # noqa: F401
    data.load('digits')
    self._main = cli.main
    for name, config in CONFIGS.items():
      (folder / f'{name}.py').write_text(
          f'def get_config(variant=""):\n  return {config!r}\n')

  def run(self, name: str, run: pathlib.Path, at: int = 0, tear: bool = False,
          command: list[str] | None = None):
    """(exit code or minus the signal, file operations, stderr) of one command."""
    words = {'{config}': self.folder / f'{name}.py', '{run}': run}
    argv = [str(words.get(word, word)) for word in command or COMMANDS[name][0]]
    shown, counted = self.folder / 'stderr', self.folder / 'count'
    counted.unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if not child:
      code = 99
      try:
        os.dup2(os.open(shown, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        self._shim.killer_arm(str(run).encode() + b'/', at, int(tear))
        code = self._main(argv)
        counted.write_text(str(self._shim.killer_count()))
      except SystemExit as error:
        code = error.code
      except BaseException:
        import traceback
        traceback.print_exc()
      finally:
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    operations = int(counted.read_text()) if counted.exists() else 0
    return code, operations, shown.read_text(errors='replace')


def content(run: pathlib.Path) -> dict[str, object]:
  """{file: what must be equal} of a directory; digests are checked on the way."""
  from rkd_jax import files
  found = {}
  for path in sorted(run.rglob('*')):
    name = str(path.relative_to(run))
    if path.is_dir() or 'tensorboard/' in name or path.name == '.lock':
      continue
    step = re.search(r'(.*checkpoints/\d+)/', name)
    if step:  # The digest of every array, the score, the best step.
      check = run / step[1] / 'check' / 'metadata'
      found[step[1]] = json.loads(check.read_text()) if check.exists() else 'no check'
    elif path.suffix == '.json':
      found[name] = _timeless(files.read_json(path, ''))
    elif path.suffix == '.jsonl':
      found[name] = [_timeless(row) for row in files.read_lines(path)]
      if 'partial' in name:  # Batches in any order, by their key.
        found[name] = sorted(map(str, found[name]))
    elif path.name == 'faithfulness.png':  # Draws times, too.
      found[name] = path.read_bytes()[:8]
    else:
      found[name] = path.read_bytes()
  return found


def _timeless(value):
  if isinstance(value, dict):
    return {key: _timeless(of) for key, of in value.items() if key not in _TIMES}
  return [_timeless(of) for of in value] if isinstance(value, list) else value


def differences(one: dict, other: dict) -> list[str]:
  """Files that only one has or that are not equal."""
  return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]


def prepare(runner: Runner, name: str, run: pathlib.Path) -> None:
  """An empty place for a run, or a copy of the finished one that a command needs."""
  shutil.rmtree(run, ignore_errors=True)
  base = COMMANDS[name][1]
  if base:
    shutil.copytree(runner.folder / f'finished-{base}', run)


def undisturbed(runner: Runner, name: str, run: pathlib.Path):
  """(content, operations) of a run that nothing happens to, kept as finished-<name>."""
  prepare(runner, name, run)
  code, operations, shown = runner.run(name, run)
  assert code == 0, shown
  shutil.rmtree(runner.folder / f'finished-{name}', ignore_errors=True)
  shutil.copytree(run, runner.folder / f'finished-{name}')
  return content(run), operations


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--kills', type=int, default=200)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--out', default='')
  args = parser.parse_args()
  chance, began = random.Random(args.seed), time.perf_counter()
  table = collections.defaultdict(collections.Counter)
  wrong = []
  with tempfile.TemporaryDirectory() as place:
    runner = Runner(pathlib.Path(place))
    run = runner.folder / 'run'
    expected = {name: undisturbed(runner, name, run) for name in COMMANDS}
    for name, (_, operations) in expected.items():
      table[name]['operations'] = operations
    for number in range(args.kills):
      name = list(COMMANDS)[number % len(COMMANDS)]
      wanted, operations = expected[name]
      at, tear = chance.randint(1, operations), bool(number // len(COMMANDS) % 2)
      prepare(runner, name, run)
      code, _, shown = runner.run(name, run, at, tear)
      table[name]['killed'] += code == -signal.SIGKILL
      code, _, shown = runner.run(name, run)
      differ = differences(wanted, content(run)) if code == 0 else [shown[-2000:]]
      table[name]['resumed'] += code == 0
      table[name]['equal'] += not differ
      if differ:
        wrong.append({'command': name, 'at': at, 'tear': tear, 'differ': differ})
        print(wrong[-1], flush=True)
      if number % 10 == 9:
        print(f'{number + 1} kills, {time.perf_counter() - began:.0f} s: '
              f'{ {key: dict(of) for key, of in table.items()} }', flush=True)
  return report(args, {'kills': args.kills, 'seed': args.seed, 'wrong': wrong,
                       'seconds': round(time.perf_counter() - began), 'table': table})


def report(args, result) -> bool:
  """Prints and writes a result; whether anything in it is wrong."""
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps(result, indent=2) + '\n')
  print(json.dumps(result))
  return bool(result['wrong'])


def with_shim() -> None:
  """Starts this script again with the shim loaded, unless that is done."""
  if 'killer' in os.environ.get('LD_PRELOAD', ''):
    return
  shim = pathlib.Path(tempfile.mkdtemp()) / 'killer.so'
  subprocess.run(['gcc', '-shared', '-fPIC', '-O2', '-o', str(shim),
                  str(HERE / 'killer.c'), '-ldl'], check=True)
  os.environ |= {
      'LD_PRELOAD': str(shim), 'JAX_PLATFORMS': 'cpu',
      'PYTHONPATH': os.pathsep.join([str(HERE.parent), os.environ.get('PYTHONPATH', '')]),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', tempfile.mkdtemp())
  os.execv(sys.executable, [sys.executable, *sys.argv])


if __name__ == '__main__':
  with_shim()
  sys.exit(main())
