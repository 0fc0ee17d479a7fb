"""`rkd evaluate --attack` on a small run: its table, its images, resuming, errors."""

import json

import jax
import numpy as np
import pytest

from rkd_jax import cli, comparison, experiment, files
from rkd_jax.errors import ConfigError
from rkd_jax.stages import attack as stage

pytestmark = pytest.mark.usefixtures('quick_compilation')

SMALL = {
    'devices': 1, 'model': 'mlp_16', 'method': 'standard', 'data': {'name': 'digits'},
    'attack': {'eps': 0.1, 'step_size': 0.05, 'steps': 2},
    'train': {'epochs': 8, 'batch_size': 128},
    'validation': {'every': 8, 'examples': 100},
    'evaluation': {'attacks': ('clean', 'pgd20'), 'examples': 40, 'batch_size': 20},
}
SHORT = {'examples': 40, 'steps': 10, 'queries': 50}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('attacked')
  return workdir, experiment.run(SMALL, workdir)


def test_table_and_images(finished):
  workdir, results = finished
  table = experiment.attack(SMALL, workdir, 'autoattack', save_images=True, **SHORT)
  assert table == files.read_json(workdir / 'tables' / 'autoattack.json', '')
  assert not (workdir / 'tables' / 'autoattack.batches').exists()
  best = results['student']['best']
  assert table['clean'] == best['clean']['accuracy'] and table['examples'] == 40
  assert table['robust'] <= best['pgd20']['accuracy'] < table['clean']
  assert [s['name'] for s in table['stages']] == ['apgd-ce', 'apgd-t', 'fab-t', 'square']
  assert all({'seconds', 'queries', 'gradients', 'robust_accuracy'} <= s.keys()
             for s in table['stages'])
  with np.load(workdir / 'images' / 'autoattack.npz') as file:
    dataset = experiment.check(experiment.configuration.resolve(SMALL))
    clean = dataset.test.image[file['index']].astype(np.float64) / 255
    np.testing.assert_array_equal(file['label'], dataset.test.label[file['index']])
    assert len(clean) == round((table['clean'] - table['robust']) * 40)
    distance = np.abs(file['image'] - clean).reshape(len(clean), -1).max(axis=1)
    assert (distance <= 0.1 + 1e-7).all() and distance.max() > 0.05


def test_all_devices_find_what_one_finds(finished, monkeypatch):
  """As the config says; images and verdicts but for rounding."""
  if jax.device_count() < 8:
    pytest.skip('8 devices wanted')
  workdir, _ = finished
  attack, found = stage.robustness.autoattack, []

  def recorded(*args, mesh, **settings):
    found.append((mesh, attack(*args, mesh=mesh, **settings)))
    return found[-1][1]

  monkeypatch.setattr(stage.robustness, 'autoattack', recorded)
  for devices in (1, 0):
    experiment.attack({**SMALL, 'devices': devices}, workdir, 'autoattack', **SHORT)
  (alone, one), (mesh, many) = found
  assert alone is None and mesh.size == jax.device_count()
  for name, robust in one.robust.items():
    np.testing.assert_array_equal(many.robust[name], robust)
  np.testing.assert_allclose(many.images, one.images, atol=1e-5)
  assert not one.survived.all() and one.survived.any()


def test_an_interrupted_attack_goes_on(finished, monkeypatch):
  workdir, _ = finished
  written, write = [], stage.BatchFolder.__setitem__

  def interrupted(self, name, arrays):
    if len(written) == 3:
      raise KeyboardInterrupt
    written.append(name)
    write(self, name, arrays)

  monkeypatch.setattr(stage.BatchFolder, '__setitem__', interrupted)
  with pytest.raises(KeyboardInterrupt):
    experiment.attack(SMALL, workdir, 'autoattack_fast', **SHORT)
  monkeypatch.setattr(stage.BatchFolder, '__setitem__', lambda self, name, arrays: (
      written.append(name), write(self, name, arrays)))
  again = experiment.attack(SMALL, workdir, 'autoattack_fast', **SHORT)
  assert len(written) > 3 and len(set(written)) == len(written)
  del written[:]
  assert experiment.attack(SMALL, workdir, 'autoattack_fast', **SHORT)['robust'] == again[
      'robust']
  assert len(written) > 3  # The files were removed, so that this was a run of its own.


def test_the_command(finished, capsys, monkeypatch):
  workdir, _ = finished
  run = experiment.attack
  monkeypatch.setattr(experiment, 'attack', lambda *args, **given: run(
      *args, **given, steps=3))
  arguments = ['evaluate', '--workdir', str(workdir)]
  assert cli.main([*arguments, '--attack', 'autoattack_fast', '--examples', '10']) == 0
  assert 'apgd-t' in capsys.readouterr().out
  assert cli.main([*arguments, '--attack', 'autoatack']) == 2
  assert "did you mean 'autoattack'" in capsys.readouterr().err
  assert cli.main([*arguments, '--examples', '5']) == 2
  assert '--config.evaluation.examples' in capsys.readouterr().err
  assert cli.main([*arguments, '--attack', 'autoattack', '--examples', '-1']) == 2


def test_another_ball_than_that_of_the_run(finished, capsys):
  """In files of its own; the images lie in it. Finished batches are not mixed up."""
  workdir, _ = finished
  small, large = (experiment.attack(
      SMALL, workdir, 'autoattack_fast', norm='l1', eps=eps, save_images=True, **SHORT)
      for eps in (0.5, 2.0))
  assert large['robust'] < small['robust'] and large['norm'] == 'l1'
  folder = workdir / 'tables'
  assert files.read_json(folder / 'autoattack_fast_l1_2.json', '') == large
  assert files.read_json(folder / 'autoattack_fast_l1_0.5.json', '') == small
  with np.load(workdir / 'images' / 'autoattack_fast_l1_2.npz') as file:
    dataset = experiment.check(experiment.configuration.resolve(SMALL))
    clean = dataset.test.image[file['index']].astype(np.float64) / 255
    size = np.abs(file['image'] - clean).reshape(len(clean), -1).sum(axis=1)
    assert len(clean) and (size <= 2 + 1e-6).all() and size.max() > 0.6
  arguments = ['evaluate', '--workdir', str(workdir)]
  for wrong, says in (
      (['--norm', 'l2'], "norm 'l2' needs a radius eps: that of the run, 0.1"),
      (['--norm', 'l3', '--eps', '1'], "unknown norm 'l3'"),
      (['--eps', '0'], 'eps must be > 0 and finite, got 0.0')):
    assert cli.main([*arguments, '--attack', 'autoattack', *wrong]) == 2
    assert says in capsys.readouterr().err
  assert cli.main([*arguments, '--norm', 'l2']) == 2
  assert 'go with --attack' in capsys.readouterr().err


def test_a_comparison(tmp_path, capsys, monkeypatch):
  """All students or those named; those that have a table are not attacked again."""
  comparison.run({**SMALL, 'train': {'epochs': 1, 'batch_size': 128}, 'compare': {
      'seeds': (0, 1), 'students': (('a', {}), ('b', {'model': 'mlp_8'}))}}, tmp_path)
  run, attacked = experiment.attack, []
  monkeypatch.setattr(experiment, 'attack', lambda config, folder, *args, **given: (
      attacked.append(folder.name), run(config, folder, *args, **given))[1])
  arguments = ['evaluate', '--workdir', str(tmp_path), '--attack', 'autoattack_fast',
               '--examples', '20']
  assert cli.main([*arguments, '--students', 'b']) == 0 and attacked == ['b', 'b']
  assert cli.main(arguments) == 0 and attacked == ['b', 'b', 'a', 'a']
  assert 'b ' in capsys.readouterr().out
  table = json.loads((tmp_path / 'tables' / 'autoattack_fast.json').read_text())
  single = [json.loads((tmp_path / f'seed{seed}/students/a/tables/autoattack_fast.json')
                       .read_text()) for seed in (0, 1)]
  assert table['rows']['a']['apgd-t']['values'] == [t['robust'] for t in single]
  assert table['rows']['a']['clean']['n'] == 2 and table['examples'] == 20
  assert cli.main([*arguments, '--students', 'b', '--norm', 'l2', '--eps', '1']) == 0
  assert attacked[4:] == ['b', 'b']
  assert 'autoattack_fast_l2_1.json' in capsys.readouterr().out
  other = json.loads((tmp_path / 'tables' / 'autoattack_fast_l2_1.json').read_text())
  assert other['norm'] == 'l2' and list(other['rows']) == ['b']
  assert cli.main([*arguments, '--students', 'c']) == 2
  assert "unknown student of this comparison 'c'" in capsys.readouterr().err


def test_among_the_attacks_of_an_evaluation(finished):
  """By name in config.evaluation.attacks; part of 'worst'."""
  workdir, _ = finished
  config = experiment.configuration.resolve(SMALL)
  config.evaluation.attacks = ('clean', 'autoattack_fast')
  config.evaluation.examples = 20
  best = experiment.evaluate(config, workdir)['student']['best']
  stages = best['autoattack_fast'].pop('stages')
  assert best['worst'] == best['autoattack_fast']
  assert best['autoattack_fast']['correct'] < best['clean']['correct']
  assert [stage['name'] for stage in stages] == ['apgd-ce', 'apgd-t']
  assert stages[-1]['robust_accuracy'] == best['worst']['accuracy']
  assert stages[0]['attacked'] == best['clean']['correct']
  written = json.loads((workdir / 'tables' / 'evaluation.json').read_text())
  assert written['student']['best']['autoattack_fast']['stages'] == stages


def test_unfinished(tmp_path):
  with pytest.raises(ConfigError, match='not finished'):
    experiment.attack(SMALL, tmp_path, 'autoattack')
