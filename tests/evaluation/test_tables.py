"""Tables: numbers against NumPy, layout against tables written by hand."""

import json

import numpy as np
import pytest

from rkd_jax.evaluation import tables

SEEDS = [{'clean': 0.881, 'pgd20': 0.52}, {'clean': 0.884, 'pgd20': 0.51},
         {'clean': 0.879, 'pgd20': None}]


def test_aggregate():
  summary = tables.aggregate(SEEDS)
  clean = [0.881, 0.884, 0.879]
  assert summary['clean']['mean'] == pytest.approx(np.mean(clean))
  assert summary['clean']['std'] == pytest.approx(np.std(clean, ddof=1))
  assert summary['clean']['n'] == 3 and summary['clean']['values'] == clean
  assert summary['pgd20']['n'] == 2
  assert summary['pgd20']['std'] == pytest.approx(np.std([0.52, 0.51], ddof=1))


def test_one_seed_has_no_deviation():
  summary = tables.aggregate([{'clean': np.float32(0.5)}])
  assert summary == {'clean': {'mean': 0.5, 'std': None, 'n': 1, 'values': [0.5]}}


def test_summaries_survive_json():
  summary = tables.aggregate(SEEDS + [{'cw30': np.float64(0.25)}])
  assert json.loads(json.dumps(summary)) == summary
  rows = {'student': summary}
  assert tables.plain(json.loads(json.dumps(rows))) == tables.plain(rows)


ROWS = {
    'ciard': tables.aggregate(SEEDS),
    'sd': tables.aggregate([{'clean (last)': 0.9, 'clean': 0.95}]),
}


def test_plain():
  # In percent, by hand: mean 88.133, squares .0011 + .0711 + .0544, halved: .25.
  assert tables.plain(ROWS).splitlines() == [
      '            clean       pgd20  clean (last)  seeds',
      '-----  ----------  ----------  ------------  -----',
      'ciard  88.1 ± 0.3  51.5 ± 0.7             -    2-3',
      'sd           95.0           -          90.0      1']


def test_markdown():
  assert tables.markdown(ROWS).splitlines() == [
      '|  | clean | pgd20 | clean (last) | seeds |',
      '| --- | ---: | ---: | ---: | ---: |',
      '| ciard | 88.1 ± 0.3 | 51.5 ± 0.7 | - | 2-3 |',
      '| sd | 95.0 | - | 90.0 | 1 |']


def test_plain_accuracies_have_no_seeds():
  rows = {'student | best': {'w_robust': 0.5, 'worst': None, 'clean': 1.0}}
  assert tables.plain(rows).splitlines() == [
      '                clean  worst  w_robust',
      '--------------  -----  -----  --------',
      'student | best  100.0      -      50.0']
  assert 'student \\| best' in tables.markdown(rows)


def test_columns_are_in_a_stable_order():
  one = {'a': {'mine': 0, 'transfer': 0}, 'b': {'fgsm': 0, 'yours': 0, 'clean': 0}}
  assert tables.columns(one) == ['clean', 'fgsm', 'transfer', 'mine', 'yours']


def test_no_rows():
  assert tables.columns({}) == []
