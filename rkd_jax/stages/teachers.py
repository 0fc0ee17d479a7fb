"""Teachers: networks with the weights of a finished run or of a file."""

import dataclasses
import pathlib

from rkd_jax import config as configuration
from rkd_jax import data
from rkd_jax.errors import CheckpointError, ConfigError
from rkd_jax.models import weights
from rkd_jax.models.network import Network, Variables
from rkd_jax.stages import backdoor as backdoor_stage
from rkd_jax.stages import build
from rkd_jax.stages.backdoor import Backdoor


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A network and its weights as they are before the student is trained."""

  network: Network
  variables: Variables
  backdoor: Backdoor | None = None  # What it was poisoned with, if that is known.


def restore(name: str, spec, dataset: data.Dataset, *, dtype: str) -> Teacher:
  """The teacher that `config.teachers[name]` describes.

  Args:
    name: 'clean' or 'robust', for messages.
    spec: `run` (a finished run's directory) or `weights` and `model`, then perhaps
      with `trigger`, if its backdoor is known.
    dataset: what it must fit: number of classes and image shape.
    dtype: of the computation.

  Raises:
    ConfigError: not exactly one is given, or `weights` without `model`.
    CheckpointError: the run is not finished, or the weights are of another
      network, number of classes or image shape.
  """
  if bool(spec.run) == bool(spec.weights):
    raise ConfigError(
        f'the method needs a {name} teacher: set exactly one of '
        f'config.teachers.{name}.run (directory of a finished run), .weights '
        '(safetensors file) and .overrides (what to change to train it)')
  if spec.run:
    folder = pathlib.Path(spec.run)
    file = folder / 'weights' / 'student-best.safetensors'
    if not file.is_file():
      raise CheckpointError(
          f'config.teachers.{name}.run = {spec.run}: no finished run there '
          f'({file} is missing); train it first, or continue it with its own '
          'command')
    model = configuration.read(folder).model
  else:
    file, model = pathlib.Path(spec.weights), spec.model
    if not model:
      raise ConfigError(f'config.teachers.{name}.weights needs '
                        f'config.teachers.{name}.model, for example resnet18')
  network = build.make_network(model, dataset, dtype)
  trigger = folder / 'backdoor' if spec.run else spec.get('trigger', '')
  return Teacher(
      network, weights.load(file, weights.template(network.module, dataset.image_shape)),
      backdoor_stage.known(trigger, dataset) if trigger else None)
