"""Writing whole or not at all, and noticing what was changed since."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from rkd_jax import cli, files
from rkd_jax.errors import CheckpointError, ConfigError

ROOT = pathlib.Path(__file__).parents[1]
ARRAYS = {'a': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.array(7)}


@pytest.mark.parametrize('write, old, new', [
    (files.write, b'old', b'new'), (files.write_text, 'old', 'ne\u00b1'),
    (files.write_json, {'a': 1}, {'a': 2}), (files.write_array, np.ones(2), np.ones(3)),
    (files.write_arrays, ARRAYS, {'c': np.ones(1)}),
    (files.write_tensors, ARRAYS, {'c': np.ones(1)})])
@pytest.mark.parametrize('where', ['fsync', 'replace'])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, write, old, new, where):
  path = tmp_path / 'deep' / 'file'
  write(path, old)
  before = path.read_bytes()

  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, where, full)
  with pytest.raises(CheckpointError, match='deep.file: cannot be written: the') as e:
    write(path, new)
  assert '\n' not in str(e.value)
  assert path.read_bytes() == before
  assert os.listdir(path.parent) == ['file']
  monkeypatch.undo()
  write(path, new)
  assert path.read_bytes() != before


def test_every_flipped_bit_and_every_cut_of_a_json_file_is_noticed(tmp_path):
  path = tmp_path / 'table.json'
  files.write_json(path, {'eps': 0.1, 'n': [1, 2], 'name': 'a'})
  whole, content = path.read_bytes(), {'eps': 0.1, 'n': [1, 2], 'name': 'a'}
  for bit in range(8 * len(whole)):
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    try:
      read = files.read_json(path, 'make it again')
    except CheckpointError as error:
      assert str(path) in str(error) and '\n' not in str(error)
    else:  # White space, the name of the digest: the content is what it was.
      assert {name: read[name] for name in content} == content
  for end in range(len(whole) - 1):
    path.write_bytes(whole[:end])
    with pytest.raises(CheckpointError, match='table.json: damaged .*: make it again'):
      files.read_json(path, 'make it again')


@pytest.mark.parametrize('text', ['[1]', '1', '', '{"a": 1', '\xff', '[' * 100_000])
def test_what_is_no_object_is_named(tmp_path, text):
  path = tmp_path / 'table.json'
  path.write_text(text, encoding='latin-1')
  with pytest.raises(CheckpointError, match='table.json: damaged'):
    files.read_json(path, 'make it again')
  with pytest.warns(UserWarning, match='table.json: damaged .*: it is made again'):
    assert files.stored_json(path) is None


def test_an_edit_is_noticed_and_can_be_meant(tmp_path):
  path = tmp_path / 'table.json'
  files.write_json(path, {'eps': 0.1})
  path.write_text(path.read_text().replace('0.1', '0.2'))
  with pytest.raises(CheckpointError, match='edited'):
    files.read_json(path, '')
  path.write_text(json.dumps({'eps': json.loads(path.read_text())['eps']}))
  assert files.read_json(path, '') == {'eps': 0.2}


def test_lines_survive_torn_and_damaged_neighbours(tmp_path):
  path = tmp_path / 'rows.jsonl'
  for step in range(4):
    files.append_line(path, {'step': step, 'loss': step / 3})
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(lines[0] + lines[1].replace(b'0.333', b'0.433') + lines[2]
                   + lines[3][:9])
  files.append_line(path, {'step': 4})
  with pytest.warns(UserWarning, match='rows.jsonl: .* line 2, 4, which'):
    assert files.read_lines(path) == [{'step': 0, 'loss': 0.0},
                                      {'step': 2, 'loss': 2 / 3}, {'step': 4}]


def test_a_line_that_does_not_fit_is_taken_back(tmp_path):
  """A real limit of the file size, in a process of its own: the kernel writes a part."""
  path = tmp_path / 'rows.jsonl'
  files.append_line(path, {'step': 0})
  size = path.stat().st_size
  script = (
      'import resource, signal; from rkd_jax import files\n'
      'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
      f'resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 5}, {size + 5}))\n'
      f'files.append_line({str(path)!r}, {{"step": 1}})')
  done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True,
                        cwd=ROOT)
  assert 'rows.jsonl: cannot be written: the disk' in done.stderr.splitlines()[-1]
  assert path.stat().st_size == size
  assert files.read_lines(path) == [{'step': 0}]


def test_changed_arrays_are_noticed(tmp_path):
  path = tmp_path / 'part.npz'
  files.write_arrays(path, ARRAYS)
  read = files.read_arrays(path)
  assert set(read) == set(ARRAYS)
  np.testing.assert_array_equal(read['a'], ARRAYS['a'])
  np.savez(path, a=ARRAYS['a'] + 1, b=ARRAYS['b'],
           digest=files.digest_arrays(ARRAYS))  # Sound as a zip, and exchanged.
  with pytest.raises(CheckpointError, match='part.npz: damaged .*digest'):
    files.read_arrays(path)
  path.write_bytes(b'PK')
  with pytest.raises(CheckpointError, match='part.npz: damaged'):
    files.read_arrays(path)


def test_digests_see_names_types_shapes_and_values():
  a = np.zeros((2, 3), np.float32)
  digests = [files.digest_arrays(arrays) for arrays in (
      {'x': a}, {'y': a}, {'x': a.reshape(3, 2)}, {'x': a.astype(np.int32)},
      {'x': -a}, {}, {'x': a[:0]}, {'x': np.float32(0)})]
  assert len(set(digests)) == len(digests)
  assert files.digest_arrays({'x': a.T}) == files.digest_arrays({'x': a.T.copy()})
  assert files.digest({'a': (1, 2), 'b': 1}) == files.digest({'b': 1, 'a': [1, 2]})


def left_in(folder, names):
  """Those of the names that are still there after a sweep of a directory."""
  for path in (folder / name for name in names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('')
  files.sweep(folder)
  return [name for name in names if (folder / name).exists()]


def test_leftovers_are_swept_but_not_those_of_other_runs(tmp_path):
  gone = ['weights/x.safetensors.12.partial', 'tables/evaluation.partial',
          'tables/autoattack.batches/ab/0.npz.partial', 'weights/.tmpA1',
          'config.json.7.partial', 'config.partial', 'metrics.jsonl.7.partial',
          'metrics.partial']
  kept = ['tables/faithfulness.partial.jsonl', 'config.json',
          'teachers/clean/config.json', 'teachers/clean/tables/y.json.7.partial',
          'backdoor/config.json', 'backdoor/tables/y.json.7.partial']
  assert left_in(tmp_path, gone + kept) == kept


def test_files_of_others_are_not_swept(tmp_path):
  mine = ['film.partial', 'film.mkv.12.partial', 'a.tmp', '.tmpx', 'downloads/b.partial']
  kept = [*mine, 'config.json']  # Of a run that was put there.
  assert left_in(tmp_path / 'home', kept) == kept
  kept = [*mine, 'weights/b.partial', 'tables/c.tmp']  # Nothing of a run yet.
  assert left_in(tmp_path / 'other', kept) == kept


def test_without_the_line_of_its_digest_a_file_can_be_read(tmp_path):
  path = tmp_path / 'x.json'
  files.write_json(path, {'a': 1, 'b': [2]})
  lines = [line for line in path.read_text().split('\n') if '"digest"' not in line]
  path.write_text('\n'.join(lines).replace('1', '3'))
  assert files.read_json(path, '') == {'a': 3, 'b': [2]}


def test_no_path_is_not_the_current_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ConfigError, match='workdir is empty'):
    files.local_path('', 'workdir')
  for command in (['quickstart'], ['evaluate'], ['certify'], ['detect']):
    assert cli.main([*command, '--workdir=']) == 2
  assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_of_a_directory(tmp_path):
  (tmp_path / 'x').write_text('')
  for path in (tmp_path / 'x' / 'y', tmp_path / 'x' / 'y' / 'z'):
    with pytest.raises(CheckpointError, match='a file is where a directory is needed'):
      files.write(path, b'')


def test_paths_expand_home_and_refuse_object_stores(monkeypatch):
  monkeypatch.setenv('HOME', '/somewhere')
  assert str(files.local_path('~/run', '--workdir')) == '/somewhere/run'
  for address in ('gs://bucket/run', 's3://x', 'gs:/bucket'):
    with pytest.raises(ConfigError, match=f'--workdir is {address!r}, but gs|s3'):
      files.local_path(address, '--workdir')
  with pytest.raises(ConfigError, match='no home directory'):
    files.local_path('~nobody-of-this-name/run', '--workdir')
