"""Teachers: networks with the weights of a finished run or of a file."""

import dataclasses

import jax
import numpy as np

from rkd_jax import config as configuration
from rkd_jax import data, files
from rkd_jax.errors import ConfigError
from rkd_jax.models import weights
from rkd_jax.models.network import Network, Variables
from rkd_jax.stages import backdoor as backdoor_stage
from rkd_jax.stages import build, trained
from rkd_jax.stages.backdoor import Backdoor


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A network and its weights as they are before the student is trained."""

  network: Network
  variables: Variables
  backdoor: Backdoor | None = None  # What it was poisoned with, if that is known.

  @property
  def fingerprint(self) -> str:
    """Digest of its weights and of the backdoor."""
    trigger = {} if self.backdoor is None else {
        str(i): np.asarray(leaf)
        for i, leaf in enumerate(jax.tree.leaves(self.backdoor.trigger))}
    return files.digest([weights.fingerprint(self.variables),
                         files.digest_arrays(trigger)])


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
    folder = files.local_path(spec.run, f'config.teachers.{name}.run')
    file = trained.weights_file(folder, 'student', 'best')
    if not file.is_file():
      raise ConfigError(
          f'config.teachers.{name}.run = {spec.run}: no finished run there '
          f'({file} is missing); train it first, or continue it with its own '
          'command')
    model = configuration.read(folder).model
  else:
    where = f'config.teachers.{name}.weights'
    file = files.local_path(spec.weights, where)
    model = spec.model
    if not model:
      raise ConfigError(f'{where} needs config.teachers.{name}.model, for example '
                        'resnet18')
    if not file.is_file():
      raise ConfigError(f'{where}: {file}: no such file')
  network = build.make_network(model, dataset, dtype)
  trigger = folder / 'backdoor' if spec.run else spec.get('trigger', '') and (
      files.local_path(spec.trigger, f'config.teachers.{name}.trigger'))
  template = weights.template(network.module, dataset.image_shape)
  variables = (trained.load(folder, 'student', 'best', template) if spec.run
               else weights.load(file, template))
  return Teacher(network, variables,
                 backdoor_stage.known(trigger, dataset) if trigger else None)
