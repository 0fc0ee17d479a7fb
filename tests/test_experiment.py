"""Whole experiments on the digits: results, resuming, errors, the command."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

import rkd_jax as rkd
from rkd_jax import cli
from rkd_jax.errors import CheckpointError, ConfigError

ROOT = pathlib.Path(__file__).parents[1]

# A few seconds each: small dense networks, two attack steps.
SMALL = {
    'devices': 1, 'model': 'mlp_16', 'data': {'name': 'digits'},
    'attack': {'eps': 0.1, 'step_size': 0.05, 'steps': 2},
    'train': {'epochs': 4, 'batch_size': 128},
    'validation': {'every': 2, 'examples': 100},
    'evaluation': {'attacks': ('clean', 'fgsm'), 'examples': 100},
}
TEACHERS = {
    'clean': {'overrides': {'method': 'standard', 'train': {'epochs': 8}}},
    'robust': {'overrides': {'method': 'pgd_at', 'train': {'epochs': 8}}},
}
CIARD = {**SMALL, 'method': 'ciard', 'teachers': TEACHERS,
         'ciard': {'retrain_from': 0.5, 'kl_scale': 10.0}}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A finished CIARD run: (directory, results)."""
  workdir = tmp_path_factory.mktemp('ciard')
  return workdir, rkd.run(CIARD, workdir)


def test_a_run_learns_and_leaves_its_files(finished):
  workdir, results = finished
  assert results['student']['best']['clean']['accuracy'] > 0.5  # 10 classes.
  assert results['student']['best']['clean']['n'] == 100
  for name in ('config.json', 'metrics.jsonl', 'tables/evaluation.json',
               'weights/student-best.safetensors',
               'weights/student-last.safetensors',
               'weights/robust-last.safetensors', 'figures/training.png',
               'teachers/clean/weights/student-best.safetensors'):
    assert (workdir / name).stat().st_size > 0, name
  rows = [json.loads(line) for line in
          (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert [row['epoch'] for row in rows] == [1, 2, 3, 4]
  assert 'validation/robust_teacher_pgd10' in rows[-1]


def test_the_robust_teacher_is_retrained_in_its_phase_only(finished):
  workdir, results = finished
  before = load_file(workdir / 'teachers/robust/weights/student-best.safetensors')
  after = load_file(workdir / 'weights/robust-last.safetensors')
  assert any(np.any(before[name] != after[name]) for name in before)
  assert set(results['retrained_teachers']['robust']) == {'before', 'after'}


def test_a_finished_run_is_not_run_again(finished):
  workdir, results = finished
  files = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')
           if path.is_file() and path.suffix in ('.safetensors', '.json')}
  assert rkd.run(CIARD, workdir) == json.loads(json.dumps(results))
  assert files == {path: path.stat().st_mtime_ns for path in files}


def test_another_config_is_refused(finished):
  with pytest.raises(ConfigError, match=r'attack.steps \(2 there, 3 now\)'):
    rkd.run({**CIARD, 'attack': {**CIARD['attack'], 'steps': 3}}, finished[0])


def test_evaluate_again_with_other_attacks(finished, capsys):
  workdir, results = finished
  code = cli.main(['evaluate', '--workdir', str(workdir),
                   "--config.evaluation.attacks=('clean','pgd10')"])
  assert code == 0
  shown = capsys.readouterr().out
  assert 'pgd10' in shown and 'robust teacher after' in shown
  again = json.loads((workdir / 'tables/evaluation.json').read_text())
  assert (again['student']['best']['clean']
          == results['student']['best']['clean'])
  assert cli.main(['evaluate', '--workdir', str(workdir),
                   '--config.train.epochs=3']) == 2


def weights_of(workdir):
  return {path.relative_to(workdir): path.read_bytes()
          for path in sorted(pathlib.Path(workdir).rglob('*.safetensors'))}


def test_the_same_seed_gives_the_same_bits(finished, tmp_path):
  rkd.run(CIARD, tmp_path / 'again')
  assert weights_of(tmp_path / 'again') == weights_of(finished[0])


def test_another_seed_gives_others(finished, tmp_path):
  config = {**CIARD, 'seed': 1, 'teachers': {
      name: {'run': str(finished[0] / 'teachers' / name)} for name in TEACHERS}}
  rkd.run(config, tmp_path / 'other')
  ours, theirs = weights_of(tmp_path / 'other'), weights_of(finished[0])
  name = pathlib.Path('weights/student-last.safetensors')
  assert ours[name] != theirs[name]


def start(workdir, config_file):
  environment = {**os.environ, 'XLA_FLAGS': '', 'PYTHONPATH': str(ROOT)}
  return subprocess.Popen(
      [sys.executable, '-m', 'rkd_jax', 'train', '--config', str(config_file),
       '--workdir', str(workdir)], env=environment, stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE)


def finish(workdir, config_file):
  process = start(workdir, config_file)
  _, errors = process.communicate(timeout=280)
  assert process.returncode == 0, errors.decode()[-2000:]


def write_config(tmp_path, teachers):
  """A config file whose teachers are those of a finished run."""
  config = {**CIARD, 'teachers': {
      name: {'run': str(teachers / 'teachers' / name)} for name in TEACHERS}}
  path = tmp_path / 'config.py'
  path.write_text(f'VARIANTS = ()\ndef get_config(variant):\n  return {config}')
  return path


def kill_after(process, condition):
  """Kills a process as soon as a condition holds; whether it came to that."""
  while process.poll() is None:
    if condition():
      process.send_signal(signal.SIGKILL)
      process.wait()
      return True
    time.sleep(0.005)
  return False


def test_killed_in_the_middle_of_training_it_ends_with_the_same_bits(
    finished, tmp_path):
  """Killed once two epochs of the student are logged."""
  config_file = write_config(tmp_path, finished[0])
  workdir = tmp_path / 'killed'
  log = workdir / 'metrics.jsonl'
  assert kill_after(start(workdir, config_file),
                    lambda: log.exists() and log.read_text().count('\n') >= 2)
  assert not (workdir / 'tables' / 'training.json').exists()
  finish(workdir, config_file)
  compare_weights(workdir, finished[0])


def compare_weights(workdir, reference):
  """The student and the retrained teacher, best and last, are bitwise equal."""
  ours, theirs = weights_of(workdir), weights_of(reference)
  assert len(ours) == 4
  for name in ours:
    assert ours[name] == theirs[name], name


@pytest.mark.slow
def test_killed_at_five_random_moments_it_ends_with_the_same_bits(
    finished, tmp_path):
  config_file = write_config(tmp_path, finished[0])
  workdir = tmp_path / 'killed'
  random = np.random.default_rng(0)
  for _ in range(5):
    until = time.monotonic() + random.uniform(2.0, 14.0)
    kill_after(start(workdir, config_file), lambda t=until: time.monotonic() > t)
  finish(workdir, config_file)
  compare_weights(workdir, finished[0])


def test_an_interrupted_export_is_made_up_for(finished, tmp_path):
  """The process dies after training, before the weights are written."""
  config = {**SMALL, 'method': 'standard'}
  rkd.run(config, tmp_path / 'run')
  expected = weights_of(tmp_path / 'run')
  for name in ('tables/training.json', 'tables/evaluation.json',
               'weights/student-best.safetensors'):
    (tmp_path / 'run' / name).unlink()
  rkd.run(config, tmp_path / 'run')
  assert weights_of(tmp_path / 'run') == expected


def test_teachers_that_cannot_be_used(finished, tmp_path):
  with pytest.raises(ConfigError, match='needs a robust teacher: set exactly one'):
    rkd.run({**SMALL, 'method': 'rslad'}, tmp_path / 'a')
  with pytest.raises(ConfigError, match='no finished run there'):
    rkd.run({**SMALL, 'method': 'rslad',
             'teachers': {'robust': {'run': str(tmp_path / 'none')}}},
            tmp_path / 'b')
  file = str(finished[0] / 'weights' / 'student-best.safetensors')
  with pytest.raises(ConfigError, match='robust.weights needs .*robust.model'):
    rkd.run({**SMALL, 'method': 'rslad',
             'teachers': {'robust': {'weights': file}}}, tmp_path / 'c')
  with pytest.raises(CheckpointError):
    rkd.run({**SMALL, 'method': 'rslad', 'teachers': {
        'robust': {'weights': file, 'model': 'mlp_32'}}}, tmp_path / 'd')
  assert not list(tmp_path.iterdir())  # Nothing was begun.


def test_a_teacher_from_a_weight_file(finished, tmp_path):
  file = str(finished[0] / 'teachers/robust/weights/student-best.safetensors')
  results = rkd.run({**SMALL, 'method': 'rslad', 'rslad': {'kl_scale': 10.0},
                     'teachers': {'robust': {
                         'weights': file, 'model': 'mlp_16'}}}, tmp_path / 'run')
  assert results['student']['best']['clean']['accuracy'] > 0.4


def test_a_teacher_from_a_path_relative_to_the_current_directory(
    finished, tmp_path, monkeypatch):
  monkeypatch.chdir(finished[0].parent)
  run = f'{finished[0].name}/teachers/robust'
  config = {**SMALL, 'method': 'rslad', 'train': {'epochs': 1},
            'validation': {'every': 1}, 'teachers': {'robust': {
                'run': run, 'overrides': {'method': 'pgd_at'}}}}
  rkd.run(config, tmp_path / 'run')
  assert not (tmp_path / 'run/teachers').exists()  # The run goes before overrides.
  stored = json.loads((tmp_path / 'run/config.json').read_text())
  assert stored['teachers']['robust']['run'] == run


@pytest.mark.parametrize('arguments, code, message', [
    (['train', '--config', 'configs/no.py', '--workdir', 'x'], 2, 'no.py'),
    (['evaluate', '--workdir', 'x'], 2, 'x holds no run'),
    (['list', 'more'], 2, "unknown argument 'more'"),
])
def test_command_errors(arguments, code, message, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert cli.main(arguments) == code
  shown = capsys.readouterr().err
  assert message in shown and shown.count('\n') == 1
  assert not list(tmp_path.iterdir())


def test_list_names_everything(capsys):
  assert cli.main(['list']) == 0
  shown = capsys.readouterr().out
  for name in ('wide_resnet', 'ciard', 'pgd', 'fashion_mnist'):
    assert name in shown


def test_a_reader_who_stops_is_no_error():
  reads, writes = os.pipe()
  os.close(reads)
  with open(writes, 'w') as nobody:
    done = subprocess.run(
        [sys.executable, '-m', 'rkd_jax', 'list'], stdout=nobody, check=False,
        stderr=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': str(ROOT)})
  assert (done.returncode, done.stderr) == (141, b'')
