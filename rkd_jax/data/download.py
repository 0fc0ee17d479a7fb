"""Gets a data set that is not prepared yet: TFDS downloads, in its own process."""

import importlib.util
import pathlib
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

from rkd_jax.errors import DataError

_HOSTS = {  # Asked first: TFDS itself retries an absent network for many minutes.
    'mnist': 'https://storage.googleapis.com/',
    'fashion_mnist': 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/',
    'cifar10': 'https://www.cs.toronto.edu/',
    'cifar100': 'https://www.cs.toronto.edu/',
    'svhn_cropped': 'http://ufldl.stanford.edu/',
}
_SCRIPT = (
    'import sys, tensorflow_datasets as tfds\n'
    'tfds.builder(sys.argv[1], data_dir=sys.argv[2], '
    "file_format='array_record').download_and_prepare()\n")


def how(name: str, root: pathlib.Path) -> str:
  """A sentence that says how to get a data set into `root`."""
  return (
      'Get it on any machine with a network and TensorFlow (preparing needs it, '
      'reading does not): python -c "import tensorflow_datasets as tfds; '
      f"tfds.builder('{name}', data_dir='{root}', "
      "file_format='array_record').download_and_prepare()\", or copy a prepared "
      f'{name}/<version>/ folder there')


def prepare(name: str, root: pathlib.Path) -> None:
  """Downloads and prepares a data set into `<root>/<name>/<version>/`.

  TFDS needs TensorFlow to write records (not to read them). It runs in a child
  process, so that TensorFlow claims no accelerator memory in this one, and in a
  temporary folder, so that an interrupted download leaves nothing behind.

  Raises:
    DataError: TensorFlow or the network is absent, or the preparation failed.
  """
  looked = (
      f'the data set {name!r} is not in {root} '
      f'(looked for {name}/<version>/; data_dir is the folder above {name})')
  if importlib.util.find_spec('tensorflow') is None:
    raise DataError(
        f'{looked}, and TensorFlow is not installed to prepare it. {how(name, root)}')
  if not _reachable(_HOSTS[name]):
    raise DataError(
        f'{looked}, and {_HOSTS[name]} cannot be reached to download it. '
        f'{how(name, root)}')
  try:
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix='.rkd-download-') as folder:
      command = [sys.executable, '-c', _SCRIPT, name, folder]
      subprocess.run(command, check=True, stdout=sys.__stderr__)
      _move_in(pathlib.Path(folder) / name, root / name)
  except (OSError, subprocess.CalledProcessError) as error:
    raise DataError(
        f'{looked}, and preparing it failed ({error}). {how(name, root)}') from error


def _move_in(made: pathlib.Path, target: pathlib.Path) -> None:
  target.mkdir(exist_ok=True)
  for version in made.iterdir():
    if not (target / version.name).exists():  # Else another process was first.
      version.rename(target / version.name)


def _reachable(url: str) -> bool:
  try:
    urllib.request.urlopen(url, timeout=10).close()
  except urllib.error.HTTPError:
    return True  # The host answered, if only to refuse this page.
  except OSError:
    return False
  return True
