"""The notebooks run, on a small scale."""

import json
import pathlib

import matplotlib
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / 'notebooks').glob('*.ipynb'))
# What makes a notebook quick: text of a cell, and what stands there instead.
SMALLER = {'bounds': [('np.linspace(0.0, 0.3, 7)', 'np.linspace(0.0, 0.3, 2)'),
                      ('steps=20)', 'steps=2)')]}


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path):
  matplotlib.use('Agg')
  source = '\n'.join(
      ''.join(cell['source']) for cell in json.loads(path.read_text())['cells']
      if cell['cell_type'] == 'code')
  for old, new in SMALLER[path.stem]:
    assert old in source
    source = source.replace(old, new)
  exec(compile(source, str(path), 'exec'), {'__name__': '__notebook__'})
