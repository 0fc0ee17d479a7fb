"""The command where output, home directory or disk are not what they should be."""

import json
import os
import pathlib
import pwd
import subprocess
import sys

import jax
import pytest

import rkd_jax as rkd
from rkd_jax import cli, files
from rkd_jax import config as configuration
from rkd_jax.errors import ConfigError
from rkd_jax.training import parallel

ROOT = pathlib.Path(__file__).parents[1]


def shell(line, **environment):
  return subprocess.run(['bash', '-c', line], cwd=ROOT, capture_output=True, text=True,
                        env={**os.environ, 'RKD': f'{sys.executable} -m rkd_jax',
                             **environment})


def test_closed_output():
  done = shell('$RKD list >&-; echo $?; $RKD show-trigger 2>&-; echo $?; '
               '$RKD list more <&- >&- 2>&-; echo $?')
  assert (done.stdout, done.stderr) == ('0\n2\n2\n', '')


def test_a_file_never_gets_the_descriptor_of_closed_output(tmp_path):
  script = ('import os, sys; from rkd_jax import cli\n'
            'cli.main(["list", "more"])\n'
            'os.write(3, str(os.open("/dev/null", os.O_RDONLY)).encode())')
  done = shell(f"$PYTHON -c '{script}' 3>{tmp_path / 'number'} >&- 2>&-",
               PYTHON=sys.executable)
  assert done.returncode == 0 and int((tmp_path / 'number').read_text()) > 2


def test_a_terminal_without_the_characters_of_a_table(tmp_path):
  """The table of two seeds has a deviation in every cell."""
  for name in ('a', 'b'):
    config = configuration.resolve({'teachers': {'poisoned': {
        'overrides': {'backdoor': {'trigger': name}}}}})
    files.write_json(tmp_path / name / 'config.json', configuration.to_dict(config))
    files.write_json(tmp_path / name / 'tables' / 'comparison.json', {'rows': {'x': {
        'clean': {'mean': 0.5, 'std': 0.1, 'n': 2, 'values': [0.4, 0.6]},
        'asr': {'mean': 0.5, 'std': 0.1, 'n': 2, 'values': [0.4, 0.6]}}}})
  line = f'$RKD backdoor-table {tmp_path}/a {tmp_path}/b --out {tmp_path}/table.md'
  done = shell(line, PYTHONIOENCODING='ascii', LC_ALL='C')
  assert done.returncode == 0 and '50.0 +- 10.0' in done.stdout
  assert '50.0 ± 10.0' in (tmp_path / 'table.md').read_text(encoding='utf-8')


def test_no_home(monkeypatch):
  def nobody(_):
    raise KeyError('getpwuid(): uid not found')

  monkeypatch.delenv('HOME')
  monkeypatch.delenv('RKD_CACHE_DIR')
  monkeypatch.setattr(pwd, 'getpwuid', nobody)
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', None)
  try:
    with pytest.warns(UserWarning, match='programs are not kept: .* no home directory'):
      parallel.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  with pytest.raises(ConfigError, match='no home directory'):
    rkd.run({'method': 'standard'}, '~/run')


def test_home_in_every_path(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('HOME', str(tmp_path))
  files.write_json(tmp_path / 'run' / 'config.json', {'seed': 1})
  assert cli.main(['show-trigger', '--workdir', '~/run']) == 2
  assert f'{tmp_path}/run is not poisoned' in capsys.readouterr().err
  assert cli.main(['show-trigger', '--trigger', 'badnets', '--out', '~/t.png']) == 0
  assert (tmp_path / 't.png').exists()
  assert cli.main(['backdoor-table', '~/run']) == 2
  assert f'{tmp_path}/run holds no finished' in capsys.readouterr().err
  for teacher in ({'run': '~/x'}, {'weights': '~/x', 'model': 'cnn_3'}):
    config = {'method': 'rslad', 'teachers': {'robust': teacher}}
    with pytest.raises(ConfigError, match=f'robust.(run|weights).*{tmp_path}/x'):
      rkd.run(config, tmp_path / 'new')


@pytest.mark.parametrize('command', ['train', 'compare', 'evaluate', 'certify', 'detect'])
def test_object_stores_are_refused_and_nothing_is_made(
    command, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  config = ['--config', 'x.py'] if command in ('train', 'compare') else []
  assert cli.main([command, *config, '--workdir', 'gs://bucket/run']) == 2
  assert "--workdir is 'gs://bucket/run', but gs: addresses" in capsys.readouterr().err
  for change in ({'data': {'name': 'npz', 'data_dir': 's3://b/x.npz'}},
                 {'method': 'rslad', 'teachers': {'robust': {'run': 'gs://b/run'}}}):
    with pytest.raises(ConfigError, match='addresses are not supported'):
      rkd.run({'method': 'standard', **change}, tmp_path / 'run')
  assert os.listdir(tmp_path) == []


def test_an_older_config_lacks_newer_keys(tmp_path):
  config = configuration.resolve({'seed': 3})
  content = configuration.to_dict(config)
  del content['averaging'], content['attack']['eps_warmup']
  (tmp_path / 'config.json').write_text(json.dumps(content))
  configuration.claim(tmp_path, config)
  assert configuration.read(tmp_path) == config
  (tmp_path / 'config.json').write_text('{"sed": 1}')
  with pytest.raises(ConfigError, match='config.json: config.sed does not exist'):
    configuration.read(tmp_path)
