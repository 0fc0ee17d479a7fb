"""Finds what is wrong with a config before anything is computed or written."""

import jax

from rkd_jax import data
from rkd_jax.errors import ConfigError, unknown_name
from rkd_jax.evaluation import robustness
from rkd_jax.stages import backdoor, build, detoxify
from rkd_jax.training import parallel


def check(config) -> data.Dataset:
  """Builds everything that a config names, as cheaply as possible.

  Returns:
    The data set, loaded.

  Raises:
    ConfigError: a name or value is wrong, alone or for this data set.
    DataError: the data set cannot be read.
  """
  if config.data.augmentation not in data.AUGMENTATIONS:
    raise unknown_name('augmentation', config.data.augmentation, data.AUGMENTATIONS)
  method = build.make_method(config)
  robustness.specs_from(
      (*config.evaluation.attacks, config.validation.attack), config.attack)
  parallel.check_batch_size(
      config.train.batch_size, parallel.make_mesh(config.devices))
  dataset = build.load_data(config)
  _check_sizes(config, dataset)
  backdoor.check(config, dataset)
  detoxify.check(config)
  build.make_optimizer(config)
  build.make_averaging(config)
  build.make_gradient_at(config)
  network = build.make_network(config.model, dataset, config.dtype)
  key = jax.random.key(0)
  jax.eval_shape(
      lambda: method.init_student(key, network.init(key, dataset.image_shape)))
  if method.attach is not None and not method.roles:  # Others need their teachers.
    method.attach(network, {}, dataset.image_shape)
  return dataset


def _check_sizes(config, dataset):
  if len(dataset.train) < config.train.batch_size:
    raise ConfigError(
        f'config.train.batch_size = {config.train.batch_size} is more than the '
        f'{len(dataset.train)} training images of {dataset.name!r} that are '
        'left after the validation split')
  if not len(dataset.validation):
    raise ConfigError(
        f'config.data.validation = {config.data.validation} leaves no image to '
        'choose the best checkpoint with; hold out at least one')
