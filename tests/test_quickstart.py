"""The quickstart: its own config, and its files, at a fraction of its size."""

import dataclasses
import json

import pytest

from rkd_jax import comparison, experiment, files, quickstart
from rkd_jax import config as configuration

pytestmark = pytest.mark.usefixtures('quick_compilation')

STUDENTS = [(kind, *student) for kind in ('CONFIG', 'BACKDOOR')
            for student in getattr(quickstart, kind)['compare']['students']]


@pytest.mark.parametrize('kind, student, changes', STUDENTS)
def test_each_student_and_its_teachers_can_be_built(kind, student, changes):
  del student
  config = configuration.resolve(getattr(quickstart, kind))
  configuration.overlay(config, changes)
  config.devices = 1
  dataset = experiment.check(config)
  assert (dataset.name, len(dataset.test)) == ('digits', 359)


def test_the_backdoor_passes_to_the_undefended_student_alone(tmp_path):
  """Without the former the rows of the defences would say nothing."""
  config = configuration.resolve(quickstart.BACKDOOR)
  config.devices = 1
  wanted = {'undefended', 'reversed trigger'}
  config.compare.students = tuple(
      row for row in config.compare.students if row[0] in wanted)
  rows = comparison.run(config, tmp_path)['rows']
  assert rows['poisoned teacher']['asr']['mean'] > 0.9
  assert rows['undefended']['asr']['mean'] >= 0.5
  assert rows['reversed trigger']['asr']['mean'] < 0.1
  assert all(row['clean']['mean'] > 0.9 for row in rows.values())


def test_a_shrunken_quickstart_writes_its_files(tmp_path, monkeypatch, capsys):
  """The same students and teachers of one hidden layer, one epoch, few attacks."""
  config = configuration.resolve(quickstart.CONFIG)
  configuration.overlay(config, {
      'devices': 1, 'model': 'mlp_8', 'attack': {'steps': 1},
      'train': {'epochs': 1}, 'validation': {'every': 1, 'examples': 64},
      'evaluation': {'attacks': ('clean', 'fgsm'), 'examples': 64}})
  for teacher in config.teachers.values():
    teacher.overrides.model = 'mlp_8'
  monkeypatch.setattr(quickstart, 'CONFIG', config)
  poisoned = configuration.resolve(quickstart.BACKDOOR)
  configuration.overlay(poisoned, {
      'devices': 1, 'train': {'epochs': 1}, 'validation': {'every': 1}})
  poisoned.teachers.poisoned.overrides.train.epochs = 1
  monkeypatch.setattr(quickstart, 'BACKDOOR', poisoned)
  monkeypatch.setattr(quickstart, 'CERTIFICATION', dataclasses.replace(
      quickstart.CERTIFICATION, examples=8, batch=8, restarts=1, steps=5))
  content = quickstart.run(tmp_path)
  report = files.read_json(tmp_path / 'report.json', '')
  assert report == json.loads(json.dumps(content))
  assert list(report['rows']) == [
      'clean teacher', 'robust teacher', 'plain KD', 'RSLAD', 'CIARD',
      'robust teacher after CIARD', 'SD', 'FD']
  shown = capsys.readouterr().out
  for row, cells in report['rows'].items():
    assert row in shown and 0 <= cells['fgsm']['mean'] <= 1, row
  faithful = report['faithfulness']['rows']
  assert list(faithful) == ['SD', 'FD'] and 'FaithUB' in shown
  for cells in faithful.values():
    assert 0 < cells['EmpLB']['mean'] <= cells['FaithUB']['mean'] <= 1
  assert list(report['backdoor']) == [
      'poisoned teacher', 'undefended', 'RobustKD', 'RobustKD, cap 0.9',
      'reversed trigger']
  for row, cells in report['backdoor'].items():
    assert row in shown and 0 <= cells['badnets ASR']['mean'] <= 1, row
  for name in ('comparison', 'faithfulness', '../backdoor/figures/comparison'):
    assert (tmp_path / 'figures' / f'{name}.png').stat().st_size > 0
