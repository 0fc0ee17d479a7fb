"""SIGKILL at file operations and damaged files: the scripts behind docs/files.md."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(sys.platform != 'linux' or not shutil.which('gcc'),
                    reason='a preloaded library needs Linux and gcc')
@pytest.mark.parametrize('script, option', [('kills', '--kills'), ('damage', '--trials')])
def test_the_same_command_ends_with_the_same_bits(tmp_path, script, option):
  out = tmp_path / 'result.json'
  done = subprocess.run(
      [sys.executable, f'benchmarks/{script}.py', option, '20', '--seed', '1', '--out',
       str(out)], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  table = json.loads(out.read_text())['table']
  if script == 'kills':
    assert all(of['equal'] == of['resumed'] == 4 for of in table.values())
    assert sum(of['killed'] for of in table.values()) >= 18  # A count may vary by a few.
  else:
    assert table['finished'].keys() | table['half-finished'].keys() <= {
        'healed', 'named', 'unused'}
