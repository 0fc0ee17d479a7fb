"""Comparisons of students on the digits: the table, moving, errors."""

import json
import pathlib

import numpy as np
import pytest

from rkd_jax import cli, comparison
from rkd_jax.errors import ConfigError

SMALL = {
    'devices': 1, 'model': 'mlp_16', 'data': {'name': 'digits'},
    'attack': {'eps': 0.1, 'step_size': 0.05, 'steps': 2},
    'train': {'epochs': 2, 'batch_size': 128},
    'validation': {'every': 2, 'examples': 100},
    'evaluation': {'attacks': ('clean', 'transfer'), 'examples': 100},
}
TEACHERS = {
    'clean': {'overrides': {'method': 'standard'}},
    'robust': {'overrides': {'method': 'pgd_at'}},
}


def test_compare_tabulates_students_over_seeds(tmp_path):
  config = {**SMALL, 'teachers': TEACHERS, 'compare': {
      'seeds': (0, 1),
      'students': (('plain', {'method': 'sd', 'single_teacher': 'clean',
                              'optimizer': {'learning_rate': 0.02}}),
                   ('RSLAD', {'method': 'rslad',
                              'rslad': {'kl_scale': 10.0}}))}}
  content = comparison.run(config, tmp_path)
  assert list(content['rows']) == ['clean teacher', 'robust teacher', 'plain',
                                   'RSLAD']
  cell = content['rows']['RSLAD']['clean']
  singles = [json.loads((tmp_path / f'seed{seed}/students/RSLAD/tables/'
                         'evaluation.json').read_text())
             for seed in (0, 1)]
  values = [s['student']['best']['clean']['accuracy'] for s in singles]
  assert cell['values'] == values and cell['n'] == 2
  np.testing.assert_allclose(cell['mean'], np.mean(values))
  np.testing.assert_allclose(cell['std'], np.std(values, ddof=1))
  assert '| RSLAD |' in (tmp_path / 'tables' / 'comparison.md').read_text()
  assert (tmp_path / 'figures' / 'comparison.png').stat().st_size > 0


def weights_of(workdir):
  return {path: path.read_bytes() for path in
          sorted(pathlib.Path(workdir).rglob('*.safetensors'))}


def test_a_comparison_that_was_moved_goes_on(tmp_path, monkeypatch):
  """Below another directory, named relative to another current one."""
  config = {**SMALL, 'teachers': TEACHERS, 'compare': {
      'seeds': (0,), 'students': (('RSLAD', {'method': 'rslad'}),)}}
  content = comparison.run(config, tmp_path / 'before')
  (tmp_path / 'before').rename(tmp_path / 'after')
  monkeypatch.chdir(tmp_path)
  student = pathlib.Path('after/seed0/students/RSLAD')
  trained = {path: path.stat().st_mtime_ns for path in
             pathlib.Path('after').rglob('*-last.safetensors')}
  assert len(trained) == 2
  (student / 'tables/evaluation.json').unlink()
  assert comparison.run(config, 'after')['rows'] == content['rows']
  assert trained == {path: path.stat().st_mtime_ns for path in trained}
  expected = weights_of('after')
  for name in ('tables/training.json', 'weights/student-best.safetensors'):
    (student / name).unlink()  # To be made again of the checkpoint.
  assert cli.main(['evaluate', '--workdir', str(student)]) == 2
  assert comparison.run(config, 'after')['rows'] == content['rows']
  assert weights_of('after') == expected
  assert cli.main(['evaluate', '--workdir', str(student)]) == 0
  assert not (tmp_path / 'before').exists()


@pytest.mark.parametrize('changes', [
    {'teachers': {**TEACHERS, 'robust': {'overrides': {'model': 'mlpp'}}}},
    {'compare': {'students': (('good', {}), ('bad', {'model': 'mlpp'}))}},
])
def test_compare_finds_what_is_wrong_before_it_writes(changes, tmp_path):
  config = {**SMALL, 'teachers': TEACHERS,
            'compare': {'students': (('good', {}),)}, **changes}
  with pytest.raises(ConfigError, match='mlpp'):
    comparison.run(config, tmp_path)
  assert not list(tmp_path.iterdir())


def test_a_teacher_that_is_not_there_is_found_before_anything_is_written(tmp_path):
  config = {**SMALL, 'teachers': {'robust': {'run': str(tmp_path / 'none')}},
            'compare': {'seeds': (0,), 'students': (
                ('plain', {'method': 'standard'}), ('RSLAD', {'method': 'rslad'}))}}
  with pytest.raises(ConfigError, match='no finished run there'):
    comparison.run(config, tmp_path / 'compared')
  assert not list(tmp_path.iterdir())
