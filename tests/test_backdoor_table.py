"""The table of several triggers: pairing of rows, DER by hand, what is left out."""

import json

import numpy as np
import pytest

from rkd_jax import backdoor_table, cli, files
from rkd_jax import config as configuration
from rkd_jax.errors import ConfigError
from rkd_jax.evaluation import tables

HEAD = {'method': 'robustkd', 'robustkd': {'head': 'reused'}}
STUDENTS = (('head', HEAD), ('weak', {'method': 'sd'}),
            ('head, mask', {**HEAD, 'detox': {'method': 'masks'}}),
            ('weak, mask', {'method': 'sd', 'detox': {'method': 'masks'}}))


def write(folder, trigger, asr):
  config = configuration.resolve({
      'compare': {'students': STUDENTS},
      'teachers': {'poisoned': {'overrides': {'backdoor': {'trigger': trigger}}}}})
  (folder / 'tables').mkdir(parents=True)
  files.write_json(folder / 'config.json', configuration.to_dict(config))
  rows = {name: tables.aggregate([
      {'clean': clean, 'asr': rate} for clean, rate in asr[name]]) for name in asr}
  files.write_json(folder / 'tables' / 'comparison.json', {'rows': rows})


def test_table(tmp_path, capsys):
  write(tmp_path / 'a', 'badnets', {
      'poisoned teacher': [(0.9, 1.0), (0.9, 1.0)],
      'clean teacher': [(0.9, None), (0.9, None)],
      'head': [(0.9, 0.8), (0.8, 1.0)], 'weak': [(0.9, 0.1), (0.9, 0.2)],
      'head, mask': [(0.8, 0.2), (0.9, 0.0)], 'weak, mask': [(0.9, 0.0), (0.9, 0.0)]})
  write(tmp_path / 'b', 'sig', {
      'poisoned teacher': [(0.9, 1.0)], 'head': [(0.9, 0.9)], 'weak': [(0.9, 0.1)],
      'head, mask': [(0.9, 0.9)], 'weak, mask': [(0.9, 0.0)]})
  rows = backdoor_table.table([tmp_path / 'a', tmp_path / 'b'])
  np.testing.assert_allclose(rows['head, mask']['badnets ASR']['mean'], 0.1)
  # badnets: (0.6 - 0.1 + 1) / 2 and (1 - 0 + 1) / 2; sig: nothing was done, 0.5.
  np.testing.assert_allclose(
      rows['head, mask']['mean DER'], ((0.75 + 1.0) / 2 + 0.5) / 2)
  assert 'mean DER' not in rows['weak, mask']  # Its backdoor never passed.
  assert 'mean DER' not in rows['head']
  assert rows['clean teacher']['badnets ASR'] is None  # It has no trigger.
  assert cli.main(['backdoor-table', str(tmp_path / 'a'), '--out',
                   str(tmp_path / 'out.md')]) == 0
  assert 'badnets ASR' in capsys.readouterr().out
  assert '| head, mask |' in (tmp_path / 'out.md').read_text()


def test_what_is_no_comparison(tmp_path):
  with pytest.raises(ConfigError, match='holds no finished comparison'):
    backdoor_table.table([tmp_path])
  write(tmp_path / 'c', '', {'head': [(0.9, 0.8)]})
  file = tmp_path / 'c' / 'tables' / 'comparison.json'
  file.write_text(json.dumps({'rows': {'head': {'clean': {'mean': 1}}}}))
  with pytest.raises(ConfigError, match='there is no ASR'):
    backdoor_table.table([tmp_path / 'c'])
