"""Preparing a missing data set, with stand-ins for TFDS, TensorFlow and the host."""

import http.server
import os
import sys
import threading

import pytest

from rkd_jax.data import download
from rkd_jax.errors import DataError

# What the child process calls of TFDS: writes as TFDS lays it out, or dies half-way.
_TFDS = '''
import os, pathlib
class builder:
  def __init__(self, name, *, data_dir, file_format):
    assert file_format == 'array_record'
    self.folder = pathlib.Path(data_dir) / name / '3.0.2'
  def download_and_prepare(self):
    self.folder.mkdir(parents=True)
    (self.folder / 'half.array_record').write_text('half')
    if 'DIE' in os.environ:
      raise SystemExit(3)
    (self.folder / 'dataset_info.json').write_text('{}')
'''


@pytest.fixture
def tensorflow(tmp_path, monkeypatch):
  """A tensorflow that can be found, and a TFDS that the child imports."""
  modules = tmp_path / 'modules'
  modules.mkdir()
  (modules / 'tensorflow.py').write_text('raise ImportError("must not be imported")')
  (modules / 'tensorflow_datasets.py').write_text(_TFDS)
  monkeypatch.setattr(sys, 'path', [*sys.path, str(modules)])
  monkeypatch.setenv('PYTHONPATH', str(modules))


class _Refusing(http.server.BaseHTTPRequestHandler):

  def do_GET(self):
    self.send_error(403)

  def log_message(self, *args):
    pass


@pytest.fixture
def host(monkeypatch):
  """A host that answers, as most do, that its root page is forbidden."""
  with http.server.HTTPServer(('127.0.0.1', 0), _Refusing) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}/'
    monkeypatch.setitem(download._HOSTS, 'cifar10', url)
    yield url
    server.shutdown()


def test_prepares_into_place(tmp_path, tensorflow, host):
  root = tmp_path / 'new' / 'tfds'
  download.prepare('cifar10', root)
  assert os.listdir(root) == ['cifar10']  # No temporary folder is left.
  assert sorted(os.listdir(root / 'cifar10' / '3.0.2')) == [
      'dataset_info.json', 'half.array_record']


def test_failure_leaves_nothing(tmp_path, tensorflow, host, monkeypatch):
  monkeypatch.setenv('DIE', '1')
  with pytest.raises(DataError, match='preparing it failed.*exit status 3'):
    download.prepare('cifar10', tmp_path / 'tfds')
  assert not list((tmp_path / 'tfds').iterdir())


def test_no_network(tmp_path, tensorflow, monkeypatch):
  monkeypatch.setitem(download._HOSTS, 'cifar10', 'http://127.0.0.1:9/')
  with pytest.raises(DataError, match='http://127.0.0.1:9/ cannot be reached'):
    download.prepare('cifar10', tmp_path / 'tfds')
  assert not (tmp_path / 'tfds').exists()
