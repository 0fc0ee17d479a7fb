"""What a finished training leaves: its record and its weights, which must match."""

import pathlib
import warnings
from typing import Any

from rkd_jax import files
from rkd_jax.errors import CheckpointError
from rkd_jax.models import weights
from rkd_jax.stages import build

DONE = pathlib.Path('tables', 'training.json')
REMEDY = 'the command that started the run makes it again'


def weights_file(workdir: pathlib.Path, who: str, when: str) -> pathlib.Path:
  """File of the weights of 'student' or a retrained role, 'best' or 'last'."""
  return workdir / 'weights' / f'{who}-{when}.safetensors'


def record(workdir: pathlib.Path) -> dict[str, Any]:
  """The record of a finished training; CheckpointError where there is none."""
  return files.read_json(workdir / DONE, REMEDY)


def load(workdir: pathlib.Path, who: str, when: str, like: Any) -> Any:
  """Weights of a finished training, if they are those that it wrote.

  Args:
    workdir: Directory of the run.
    who, when: Role of the network and moment of its weights, see `weights_file`.
    like: variables or a template, as in `weights.load`.

  Raises:
    CheckpointError: the file or the record is absent or damaged, or was exchanged.
  """
  file = weights_file(workdir, who, when)
  variables = weights.load(file, like)
  noted = record(workdir) if (workdir / DONE).exists() else {}
  digest = noted.get('weights', {}).get(f'{who}-{when}')  # Older versions noted none.
  if digest not in (None, weights.fingerprint(variables)):
    raise CheckpointError(f'{file}: not the weights that the run wrote; {REMEDY}')
  return variables


def is_whole(workdir: pathlib.Path) -> bool:
  """Whether every file of a finished training is there and what it was.

  Names in a warning what is not; the training stage makes it again.
  """
  found = files.stored_json(workdir / DONE)
  if found is None:
    return False
  files.read_lines(workdir / 'metrics.jsonl')  # Names its damaged lines.
  noted = found.get('weights') or {'student-best': None, 'student-last': None}
  for name, digest in noted.items():
    file = workdir / 'weights' / f'{name}.safetensors'
    try:
      arrays = files.read_tensors(file)
      if digest not in (None, files.digest_arrays(arrays)):
        raise CheckpointError(f'{file}: not the weights that the run wrote')
    except CheckpointError as error:
      warnings.warn(f'{error}: made again from the checkpoints', stacklevel=2)
      return False
  return True


def best_student(config, workdir: pathlib.Path, dataset, dtype: str = ''):
  """(network, variables) of a finished run's student at its best.

  `dtype` is that of the computation, '' that of the config.
  """
  student = build.make_network(config.model, dataset, dtype or config.dtype)
  return student, load(workdir, 'student', 'best',
                       weights.template(student.module, dataset.image_shape))
