"""What was damaged, exchanged or cut off is made again or named, never used."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import rkd_jax as rkd
from rkd_jax import cli, experiment, files
from rkd_jax.errors import CheckpointError, ConfigError
from rkd_jax.models import weights
from rkd_jax.stages import certify

ROOT = pathlib.Path(__file__).parents[1]
SMALL = {
    'devices': 1, 'model': 'mlp_8', 'method': 'standard',
    'data': {'name': 'digits', 'train_examples': 256, 'test_examples': 60},
    'train': {'epochs': 3, 'batch_size': 64},
    'validation': {'every': 1, 'examples': 30},
    'evaluation': {'attacks': ('clean',)},
}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """(directory, config) of a student of a poisoned teacher that was repaired."""
  workdir = tmp_path_factory.mktemp('healing') / 'run'
  config = {**SMALL, 'method': 'sd', 'single_teacher': 'poisoned', 'teachers': {
      'poisoned': {'overrides': {'method': 'standard', 'train': {'epochs': 1},
                                 'backdoor': {'trigger': 'badnets'}}}},
            'detox': {'method': 'finetune', 'options': {'steps': 2}, 'share': 0.5}}
  rkd.run(config, workdir)
  return workdir, config


def snapshot(run):
  """Bytes of the files that must come back, tables without their times."""
  found = {}
  for path in sorted(run.rglob('*')):
    name = str(path.relative_to(run))
    if path.is_file() and path.suffix in ('.safetensors', '.png'):
      found[name] = path.read_bytes()
    elif path.suffix == '.json':
      found[name] = timeless(files.read_json(path, ''))
  return found


def timeless(value):
  if isinstance(value, dict):
    return {key: timeless(of) for key, of in value.items() if 'seconds' not in key}
  return [timeless(of) for of in value] if isinstance(value, list) else value


def cut(path):
  path.write_bytes(path.read_bytes()[:-20])


def edit(path):
  """Another value that is just as plausible, in the same format."""
  content = bytearray(path.read_bytes())
  place = content.find(b'0') if 'json' in path.suffix else len(content) // 2 + 100
  content[place] ^= 1
  path.write_bytes(content)


def exchange(path):
  """Other weights, written properly: their own digest is right."""
  arrays = files.read_tensors(path)
  files.write_tensors(path, {name: 2 * array for name, array in arrays.items()})


@pytest.mark.parametrize('damage', [cut, edit, exchange, pathlib.Path.unlink])
def test_the_same_command_makes_good_what_a_finished_run_lost(
    finished, tmp_path, recwarn, damage):
  """Everywhere at once, in the nested run of the teacher too."""
  run = shutil.copytree(finished[0], tmp_path / 'run')
  before = snapshot(run)
  of = {exchange: ['.safetensors'], edit: ['.safetensors', '.json']}.get(
      damage, ['.safetensors', '.json', '.png'])
  harmed = [name for name in before if pathlib.Path(name).suffix in of
            and not name.endswith(('config.json', 'indices.json'))]
  assert len(harmed) >= 6
  for name in harmed:
    damage(run / name)
  results = rkd.run(finished[1], run)
  assert timeless(results) == timeless(before['tables/evaluation.json'])
  assert snapshot(run) == before
  said = ' '.join(str(warning.message) for warning in recwarn)
  if damage is not pathlib.Path.unlink:
    named = {cut: 'tables/detox.json', edit: 'tables/detox.json',
             exchange: 'weights/student-last.safetensors'}[damage]
    assert named in said


def test_a_changed_line_of_metrics_is_named(finished, tmp_path):
  run = shutil.copytree(finished[0], tmp_path / 'run')
  edit(run / 'teachers' / 'poisoned' / 'metrics.jsonl')
  with pytest.warns(UserWarning, match='poisoned/metrics.jsonl: damaged.* in line 1'):
    rkd.run(finished[1], run)


@pytest.mark.parametrize('damage', [cut, edit])
def test_a_config_that_was_changed_is_named(finished, tmp_path, damage, capsys):
  run = shutil.copytree(finished[0], tmp_path / 'run')
  damage(run / 'config.json')
  with pytest.raises(CheckpointError, match=r'run/config.json: damaged .* copy'):
    rkd.run(finished[1], run)
  for command in ('evaluate', 'certify', 'detect'):
    assert cli.main([command, '--workdir', str(run)]) == 1
    said = capsys.readouterr().err
    assert f'{run}/config.json: damaged' in said and said.count('\n') == 1


def test_data_that_were_exchanged_are_noticed(tmp_path):
  random = np.random.default_rng(0)
  arrays = {f'{kind}_{part}': random.integers(0, high, shape).astype(np.uint8)
            for part, count in (('train', 200), ('test', 40))
            for kind, high, shape in (('x', 256, (count, 4, 4)), ('y', 3, count))}
  np.savez(tmp_path / 'd.npz', **arrays)
  config = {**SMALL, 'train': {'epochs': 1, 'batch_size': 64}, 'data': {
      'name': 'npz', 'data_dir': str(tmp_path / 'd.npz')}}
  rkd.run(config, tmp_path / 'run')
  arrays['x_train'][3, 2, 1] ^= 1  # One pixel.
  np.savez(tmp_path / 'd.npz', **arrays)
  experiment.build._load_data.cache_clear()  # As in another process.
  for act in (rkd.run, rkd.evaluate):
    with pytest.raises(ConfigError, match='the content behind config.data is not what'):
      act(config, tmp_path / 'run')
  arrays['x_train'][3, 2, 1] ^= 1
  np.savez(tmp_path / 'd.npz', **arrays)
  experiment.build._load_data.cache_clear()
  rkd.run(config, tmp_path / 'run')


def test_teacher_weights_that_were_exchanged_are_noticed(finished, tmp_path):
  file = shutil.copy(
      finished[0] / 'teachers/poisoned/weights/student-best.safetensors', tmp_path)
  config = {**SMALL, 'method': 'sd', 'single_teacher': 'clean', 'teachers': {
      'clean': {'weights': str(file), 'model': 'mlp_8'}}}
  rkd.run(config, tmp_path / 'run')
  for name in ('tables/evaluation.json', 'tables/training.json'):
    (tmp_path / 'run' / name).unlink()  # As if it had been killed.
  exchange(pathlib.Path(file))
  with pytest.raises(ConfigError, match='behind config.teachers.clean is not what'):
    rkd.run(config, tmp_path / 'run')


def test_a_run_of_an_older_version_goes_on(finished, tmp_path):
  """No digests, no fingerprints, keys missing."""
  run = shutil.copytree(finished[0], tmp_path / 'run')
  before = snapshot(run)
  for path in run.rglob('*.json'):
    if 'checkpoints' in str(path):
      continue
    content = files.read_json(path, '')
    for key in ('inputs', 'weights', 'arrays', 'averaging'):
      content.pop(key, None)
    if 'training' in content:
      content['training'].pop('weights')
    path.write_text(json.dumps(content))
  for path in run.rglob('*.safetensors'):
    weights.safetensors.numpy.save_file(files.read_tensors(path), path)
  stamp = (run / 'weights/student-best.safetensors').stat().st_mtime_ns
  student = before['tables/evaluation.json']['student']
  assert rkd.run(finished[1], run)['student'] == student
  assert (run / 'weights/student-best.safetensors').stat().st_mtime_ns == stamp


def test_an_edited_batch_of_a_certificate_is_computed_again(finished, tmp_path):
  run = shutil.copytree(finished[0], tmp_path / 'run')
  settings = certify.Settings(eps=(0.01,), examples=8, method='margins', steps=2,
                              restarts=1, batch=4)
  first = rkd.certification.run(run, settings)['values']['0.01']
  path = run / certify.PARTIAL
  lines = path.read_text().splitlines(keepends=True)
  row = json.loads(lines[0])
  row['values']['upper'] = [0.0] * 4  # Faithful beyond doubt.
  path.write_text(json.dumps(row) + '\n' + lines[1])
  with pytest.warns(UserWarning, match='faithfulness.partial.jsonl: damaged.* in line 1'):
    again = rkd.certification.run(run, settings)['values']['0.01']
  assert again['upper'] == first['upper'] and again['lower'] == first['lower']


COMMAND = [sys.executable, '-m', 'rkd_jax', 'train']
LONG = {**SMALL, 'train': {'epochs': 10_000, 'batch_size': 64, 'checkpoint_every': 10_000,
                           'scan_steps': 1},
        'validation': {'every': 10_000}}


@pytest.fixture
def long(tmp_path):
  (tmp_path / 'config.py').write_text(
      f'def get_config(variant=""):\n  return {LONG!r}\n')
  return [*COMMAND, '--config', str(tmp_path / 'config.py'), '--workdir',
          str(tmp_path / 'run')]


def begun(command, log):
  process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
  until = time.monotonic() + 120
  while not (log.exists() and log.read_text().count('\n') > 3):
    assert process.poll() is None and time.monotonic() < until
    time.sleep(0.05)
  return process


def test_asked_to_stop_it_says_so_and_leaves_a_checkpoint(long, tmp_path):
  """Another process is refused meanwhile. Between two checkpoints 10,000 epochs apart."""
  log = tmp_path / 'run' / 'metrics.jsonl'
  process = begun(long, log)
  other = subprocess.run(long, cwd=ROOT, capture_output=True, text=True)
  assert other.returncode == 2
  assert f'is in use by pid {process.pid} on ' in other.stderr
  for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
    process.send_signal(number)
    said = process.communicate(timeout=100)[1]
    assert process.returncode == code
    assert 'rkd: interrupted; the same command continues' in said
    assert 'Traceback' not in said
    step = max(int(path.name) for path in (tmp_path / 'run' / 'checkpoints').iterdir())
    logged = files.read_lines(log)
    assert logged[-1]['step'] <= step < logged[-1]['step'] + 4
    if number == signal.SIGTERM:
      log.unlink()
      process = begun(long, log)
      assert files.read_lines(log)[0]['step'] in range(step, step + 5)


@pytest.mark.parametrize('blocks', [1, 12, 40])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path, blocks):
  """A limit on the size of files: of the metrics, the arrays, the checkpoint's data."""
  config = {**SMALL, 'model': 'mlp_64_64'}
  (tmp_path / 'config.py').write_text(
      f'def get_config(variant=""):\n  return {config!r}\n')
  rkd.run(config, tmp_path / 'undisturbed')
  command = [*COMMAND, '--config', str(tmp_path / 'config.py'), '--workdir',
             str(tmp_path / 'run')]
  done = subprocess.run(['bash', '-c', f'ulimit -f {blocks}; "$@"', '-', *command],
                        cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 1
  said = [line for line in done.stderr.splitlines() if not line.startswith('standard')]
  last = said[-1]
  assert f'rkd: {tmp_path}/run/' in last and 'cannot be written: the disk' in last
  assert all('warning' in line.lower() for line in said[:-1]), said
  rkd.run(config, tmp_path / 'run')
  for name in ('student-best', 'student-last'):
    ours, theirs = ((tmp_path / run / 'weights' / f'{name}.safetensors').read_bytes()
                    for run in ('run', 'undisturbed'))
    assert ours == theirs
