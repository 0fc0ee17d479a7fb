"""`rkd certify` on small runs: what it writes, resuming, errors."""

import json
import shutil

import numpy as np
import pytest

from rkd_jax import certification, cli, comparison
from rkd_jax.errors import ConfigError
from rkd_jax.stages import certify

pytestmark = pytest.mark.usefixtures('quick_compilation')

SMALL = {
    'devices': 1, 'model': 'mlp_16', 'data': {'name': 'digits'},
    'attack': {'eps': 0.05, 'step_size': 0.02, 'steps': 2},
    'train': {'epochs': 8, 'batch_size': 128},
    'validation': {'every': 8, 'examples': 100},
    'evaluation': {'attacks': ('clean',), 'examples': 100, 'batch_size': 100},
    'teachers': {'robust': {'overrides': {'method': 'pgd_at', 'model': 'mlp_32'}}},
    'compare': {'seeds': (0,), 'students': (
        ('FD', {'method': 'fd'}), ('CFD', {'method': 'cfd'}))},
}
FEW = certification.Settings(eps=(0.01, 0.03), examples=12, restarts=1, steps=5, batch=5)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('faithful')
  comparison.run(SMALL, workdir)
  return workdir


@pytest.fixture(scope='module')
def certified(finished):
  return certification.run(finished, FEW)


def test_rows_are_means_over_examples(finished, certified):
  assert list(certified['rows']) == ['FD, eps 0.01', 'FD, eps 0.03', 'CFD, eps 0.01',
                                     'CFD, eps 0.03']
  cell = certified['rows']['CFD, eps 0.03']['FaithUB']
  single = json.loads((finished / 'seed0/students/CFD' / certification.TABLE)
                      .read_text())['values']['0.03']
  assert all(len(of) == 12 for of in single.values())
  assert (np.array(single['lower']) <= single['upper']).all()
  assert (np.array(single['upper_predicted']) <= single['upper']).all()
  np.testing.assert_allclose(cell['values'], [np.mean(single['upper'])])
  small, large = (certified['rows'][f'FD, eps {eps}'] for eps in (0.01, 0.03))
  assert 0 < small['EmpLB']['mean'] <= small['FaithUB']['mean'] < 1
  assert small['FaithUB']['mean'] < large['FaithUB']['mean']
  assert (finished / 'figures' / 'faithfulness.png').stat().st_size > 0
  assert 'clean' in small


def test_an_interrupted_certification_goes_on(finished, certified, tmp_path, monkeypatch):
  """Half of the batches are there, the last line is cut off: only the rest is done."""
  workdir = tmp_path / 'copy'
  shutil.copytree(finished, workdir)
  student = workdir / 'seed0' / 'students' / 'FD'
  whole = (student / certify.PARTIAL).read_text()
  lines = whole.splitlines()
  assert len(lines) == 6  # Two radii, batches of 5, 5 and 2.
  (student / certify.PARTIAL).write_text('\n'.join(lines[:3]) + '\n' + lines[3][:40])
  run, done = certify._batch, []

  def counted(*args):
    done.append(1)
    return run(*args)

  monkeypatch.setattr(certify, '_batch', counted)
  again = certification.run(workdir, FEW)
  assert len(done) == 3  # Nothing at all for CFD.
  for row, cells in certified['rows'].items():
    for name, cell in cells.items():
      np.testing.assert_allclose(again['rows'][row][name]['values'], cell['values'])


def test_the_command(finished, capsys):
  student = finished / 'seed0' / 'students' / 'FD'
  arguments = ['certify', '--workdir', str(student), '--examples', '4']
  assert cli.main([*arguments, '--eps', '0.01', '--method', 'margins']) == 0
  assert 'FaithUB' in capsys.readouterr().out
  # The student itself, from a file: another teacher, which nothing is known of yet.
  weights = student / 'weights' / 'student-best.safetensors'
  assert cli.main([*arguments, '--teacher-weights', str(weights), '--teacher-model',
                   'mlp_16', '--eps', '0.01', '--method', 'margins']) == 0
  table = json.loads((student / certification.TABLE).read_text())
  assert table['rows']['fd']['EmpLB']['mean'] < 1e-6


def test_students_of_a_comparison_can_be_chosen(finished, certified, capsys):
  del certified  # Both students are certified already: nothing is computed again.
  content = certification.run(finished, FEW, students=('CFD',))
  assert list(content['rows']) == ['CFD, eps 0.01', 'CFD, eps 0.03']
  with pytest.raises(ConfigError, match="'CDF': did you mean 'CFD'"):
    certification.run(finished, FEW, students=('CDF',))
  single = finished / 'seed0' / 'students' / 'FD'
  assert cli.main(['certify', '--workdir', str(single), '--students', 'FD']) == 2
  assert 'single run' in capsys.readouterr().err


@pytest.mark.parametrize('flags, text', [
    (['--eps', 'x'], 'numbers'), (['--eps', '-0.1'], 'radii in [0, 1]'),
    (['--method', 'crwn'], 'crown'), (['--examples', '0'], 'examples'),
    (['--teacher', 'clean'], 'clean'),
    (['--teacher-weights', 'a.safetensors'], '--teacher-model'),
    (['--wrong'], '--wrong')])
def test_bad_flags(finished, capsys, flags, text):
  student = finished / 'seed0' / 'students' / 'FD'
  assert cli.main(['certify', '--workdir', str(student), *flags]) == 2
  assert text in capsys.readouterr().err


def test_unfinished_runs_are_refused(tmp_path):
  with pytest.raises(ConfigError, match='holds no run'):
    certification.run(tmp_path)
