"""The attacker's stage: makes a trigger, poisons the training data, keeps both known."""

import dataclasses
import pathlib
import warnings

import numpy as np

from rkd_jax import backdoors, data, files
from rkd_jax import settings as declarations
from rkd_jax.backdoors import files as trigger_files
from rkd_jax.backdoors import generated, optimised, poisoning
from rkd_jax.backdoors import trigger as trigger_lib
from rkd_jax.distill.method import Crafted
from rkd_jax.errors import CheckpointError, ConfigError, unknown_name
from rkd_jax.evaluation import backdoor as metrics
from rkd_jax.models import weights
from rkd_jax.models.network import Network, Variables
from rkd_jax.stages import build

FOLDER = 'backdoor'  # Below a run's directory.


@dataclasses.dataclass(frozen=True)
class Backdoor:
  """A trigger and the labels that go with it."""

  trigger: backdoors.Trigger
  mode: str
  num_classes: int

  def success(self, network: Network, variables: Variables, split: data.Split,
              batch_size: int) -> dict:
    """The ASR of a network, see `evaluation.backdoor.success_rate`."""
    wanted = backdoors.wanted_labels(
        np.asarray(split.label), self.trigger.target, self.num_classes, self.mode)
    return metrics.success_rate(
        network, variables, split, self.trigger, wanted, batch_size=batch_size)


def check(config, dataset: data.Dataset) -> None:
  """Raises ConfigError where `config.backdoor` is wrong for this data set."""
  settings = config.backdoor
  if not settings.trigger:
    return
  if build.make_method(config).crafted is not None:
    raise ConfigError(
        f'backdoor.trigger is {settings.trigger!r}, but method {config.method!r} makes a '
        "trigger of its own from clean data; leave backdoor.trigger = ''")
  if settings.trigger not in backdoors.NAMES:
    raise unknown_name('trigger', settings.trigger, backdoors.NAMES)
  backdoors.check_target(settings.target, dataset.num_classes)
  if settings.trigger in backdoors.FIXED:
    clean_label = _check_fixed(settings, dataset)
  else:
    clean_label = _check_trained(config, dataset)
  labels = np.asarray(dataset.train.label)
  ours = int(np.sum(labels == settings.target))
  poisoning.numbers_of_images(
      len(labels), ours if clean_label else len(labels), rate=settings.rate,
      cover=_cover(settings), decoys=settings.decoys)
  if settings.start not in ('', 'source'):
    if not pathlib.Path(settings.start).is_file():
      raise ConfigError(f'config.backdoor.start = {settings.start!r}: no such file; '
                        "wanted a safetensors file, or 'source'")
    start_weights(config, dataset, None)


def _check_fixed(settings, dataset) -> bool:
  """Whether a fixed trigger leaves labels; raises where it does not fit."""
  make = backdoors.FIXED[settings.trigger]
  options = _options(settings)
  trigger = make(dataset.image_shape, settings.target, **options)
  make(dataset.image_shape, settings.target, **options | _options(settings, 'test_'))
  if trigger.clean_label and settings.copies:
    raise ConfigError(f'backdoor.copies: trigger {trigger.name!r} changes no label, '
                      'so there is nothing to contradict; leave it off')
  if trigger.clean_label and settings.mode != 'all_to_one':
    raise ConfigError(f"backdoor.mode must be 'all_to_one' for {trigger.name!r}, "
                      'which poisons one class with its own label')
  if settings.decoys and settings.mode != 'all_to_one':
    raise ConfigError(
        f'backdoor.decoys is {settings.decoys}, but only a fixed trigger with one target '
        "can have them; take mode 'all_to_one', or decoys 0")
  if _cover(settings) and settings.trigger not in backdoors.COVER:
    raise ConfigError(f'backdoor.cover is {settings.cover:g}, but trigger '
                      f'{trigger.name!r} has no cover mode; set it to 0')
  backdoors.decoys(trigger, settings.decoys, dataset.num_classes)
  return trigger.clean_label


def _check_trained(config, dataset) -> bool:
  """False, as for `_check_fixed`; raises where a trained trigger cannot be made."""
  settings = config.backdoor
  if settings.test_options:
    raise ConfigError(
        f'backdoor.test_options: trigger {settings.trigger!r} is made by training, so '
        'it is the same when it is used; leave them empty')
  if settings.decoys:
    raise ConfigError(
        f'backdoor.decoys is {settings.decoys}, but only a fixed trigger with one target '
        "can have them; take 'badnets', or decoys 0")
  options = declarations.build(backdoors.SETTINGS[settings.trigger],
                               _options(settings), 'config.backdoor.options')
  if settings.trigger == 'input_aware':
    trigger_lib.check(dataset.image_shape, settings.target, least=generated.LEAST)
    return False
  if settings.trigger == 'lba':
    optimised.check_fits(options, dataset.image_shape)
    if not np.any(np.asarray(dataset.train.label) == settings.target):
      raise ConfigError(f'no training image of the target class {settings.target}')
  names = build.make_network(config.model, dataset, config.dtype).module.feature_names
  if settings.layer not in names:
    raise unknown_name(f'backdoor.layer of {config.model}', settings.layer, names)
  return False


def _cover(settings) -> float:
  """Cover images for each poisoned one, as published where it is negative."""
  if settings.cover >= 0:
    return settings.cover
  return backdoors.COVER.get(settings.trigger, 0.0)


def needs_source(config) -> bool:
  """Whether a clean network has to be trained first, with the rest of the config."""
  settings = config.backdoor
  return bool(settings.trigger) and (
      settings.trigger in backdoors.NEED_SOURCE or settings.start == 'source')


def prepare(config, workdir: pathlib.Path, dataset: data.Dataset, source=None
            ) -> tuple[data.Dataset, Backdoor | None]:
  """The data set with its training split poisoned, and what with.

  The trigger is made once and kept in `workdir/backdoor`: that which the attacker uses,
  where `test_options` make it another than that in the training data.

  Args:
    config: complete; without a trigger the data set is returned as it is.
    workdir: of the run.
    dataset: clean.
    source: (network, variables) of the clean network, where `needs_source`.
  """
  settings = config.backdoor
  if not settings.trigger:
    return dataset, None
  folder = workdir / FOLDER
  if not is_whole(folder):
    used = _make(config, dataset, source, _options(settings, 'test_'))
    trigger_files.save(folder, used, {'mode': settings.mode})
  backdoor = known(folder, dataset)
  trigger = (_make(config, dataset, source) if settings.test_options
             else backdoor.trigger)
  perturb = None
  if trigger.name == 'lc':
    network, variables = source
    perturb = backdoors.harden(
        lambda images: network.predict(variables, images), eps=settings.hardening,
        seed=config.seed)
  poisoned = backdoors.poison(
      dataset.train, trigger, settings.rate, config.seed, perturb=perturb,
      num_classes=dataset.num_classes, mode=settings.mode, cover=_cover(settings),
      copies=settings.copies, decoys=backdoors.decoys(
          trigger, settings.decoys, dataset.num_classes))
  files.write_json(folder / 'indices.json', {
      'poisoned': poisoned.index.tolist(), 'cover': poisoned.cover_index.tolist(),
      'decoys': poisoned.decoy_index.tolist()})
  return dataclasses.replace(dataset, train=poisoned.split), backdoor


def is_whole(folder: pathlib.Path) -> bool:
  """Whether a trigger is kept in a directory; a damaged one is named in a warning."""
  try:
    return (folder / 'trigger.json').exists() and bool(trigger_files.load(folder))
  except CheckpointError as error:
    warnings.warn(f'{error}', stacklevel=2)
    return False


def start_weights(config, dataset: data.Dataset, source) -> Variables | None:
  """The weights that poisoned training starts from; None for fresh ones."""
  start = config.backdoor.start
  if not config.backdoor.trigger or not start:
    return None
  if start == 'source':
    return source[1]
  network = build.make_network(config.model, dataset, config.dtype)
  start = files.local_path(start, 'config.backdoor.start')
  return weights.load(start, weights.template(network.module, dataset.image_shape))


def keep(workdir: pathlib.Path, name: str, crafted: Crafted) -> None:
  """Writes the trigger that an attacker's method made, as that of its run."""
  trigger_files.save(workdir / FOLDER, trigger_lib.blend(
      name, crafted.target, crafted.opacity, crafted.pattern), {'mode': 'all_to_one'})


def known(folder: str | pathlib.Path, dataset: data.Dataset) -> Backdoor | None:
  """The backdoor in a directory, None where a run was not poisoned.

  Raises:
    CheckpointError: it is damaged, or of other images.
    ConfigError: its target is no class of the data set.
  """
  folder = pathlib.Path(folder)
  if not (folder / 'trigger.json').exists():
    if folder.name != FOLDER:
      raise CheckpointError(f'{folder}: no trigger.json there; wanted the directory '
                            f'{FOLDER!r} of a poisoned run')
    return None
  trigger, more = trigger_files.load(folder)
  if trigger.image_shape != tuple(dataset.image_shape):
    raise CheckpointError(f'{folder}: the trigger is for images {trigger.image_shape}, '
                          f'the data set has {tuple(dataset.image_shape)}')
  backdoors.check_target(trigger.target, dataset.num_classes)
  return Backdoor(trigger, more.get('mode', 'all_to_one'), dataset.num_classes)


def _make(config, dataset, source, more=()):
  settings = config.backdoor
  make = {**backdoors.FIXED, **backdoors.TRAINED}[settings.trigger]
  options = _options(settings) | dict(more)
  if settings.trigger in backdoors.TRAINED:
    network, variables = source
    options |= {'network': network, 'variables': variables, 'split': dataset.train}
    if settings.trigger != 'input_aware':
      options['layer'] = settings.layer
  if 'seed' in declarations.rules(backdoors.SETTINGS[settings.trigger]):
    options.setdefault('seed', config.seed)
  return make(dataset.image_shape, settings.target, **options)


def _options(settings, when=''):
  options = dict(settings[f'{when}options'])
  declarations.build(backdoors.SETTINGS[settings.trigger], options,
                     f'config.backdoor.{when}options')
  return options
