"""The notebooks run, on a small scale."""

import json
import pathlib

import matplotlib
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / 'notebooks').glob('*.ipynb'))
# What makes a notebook quick: text of a cell, and what stands there instead.
SMALLER = {
    'backdoors': [('EPOCHS = 20', 'EPOCHS = 2'),
                  ("{'method': 'masks'}", "{'method': 'masks', 'options': {'steps': 5}}"),
                  ("WORKDIR / 'teacher')\nfig", "WORKDIR / 'teacher', steps=5)\nfig"),
                  ("'new_head'}", "'new_head', 'options': {'steps': 5}}"),
                  ("'reversed_trigger'}", "'reversed_trigger', 'options': "
                                          "{'steps': 5, 'search_steps': 5}}")],
    'bounds': [('np.linspace(0.0, 0.3, 7)', 'np.linspace(0.0, 0.3, 2)'),
               ('steps=20)', 'steps=2)')],
    'students': [('EPOCHS, EPS = 40', 'EPOCHS, EPS = 2'),
                 ('QUERIES = 100, 5000', 'QUERIES = 3, 5'),
                 ('students.items():\n  found', '[*students.items()][:1]:\n  found'),
                 ('np.linspace(0.0, 0.04, 5)', 'np.linspace(0.0, 0.04, 2)')],
}


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
