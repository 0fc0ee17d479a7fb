"""Finds what is wrong with a config before anything is computed or written."""

import functools
import json
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from rkd_jax import data, detox, distill, sections, settings
from rkd_jax.distill.method import Batch, Method
from rkd_jax.errors import ConfigError, UnsupportedPrimitiveError, unknown_name
from rkd_jax.evaluation import robustness
from rkd_jax.models.network import BoundNetwork, Network
from rkd_jax.stages import backdoor, build, detoxify
from rkd_jax.training import parallel


def check(config, teacher_models: Mapping[str, str] = MappingProxyType({})
          ) -> data.Dataset:
  """Builds everything that a config names, as cheaply as possible.

  Networks are built as shapes alone, so that layers, widths and pairs of networks are
  checked without a weight.

  Args:
    config: Complete.
    teacher_models: {role: name of the teacher's model}, as far as they are known.

  Returns:
    The data set, loaded.

  Raises:
    ConfigError: A name or value is wrong, alone or for this data set.
    DataError: The data set cannot be read.
  """
  if config.data.augmentation not in data.AUGMENTATIONS:
    raise unknown_name('augmentation', config.data.augmentation, data.AUGMENTATIONS)
  method = build.make_method(config)
  _check_threat(config, method)
  parallel.check_batch_size(
      config.train.batch_size, parallel.make_mesh(config.devices))
  dataset = build.load_data(config)
  _check_sizes(config, dataset)
  sections.check_fits(settings.build(sections.Attack, config.attack, 'config.attack'),
                      dataset.image_shape)
  backdoor.check(config, dataset)
  detoxify.check(config, dataset)
  build.make_optimizer(config)
  build.make_averaging(config)
  build.make_gradient_at(config)
  _check_networks(config, method, dataset, teacher_models)
  return dataset


def _check_threat(config, method: Method):
  attack = settings.build(sections.Attack, config.attack, 'config.attack')
  if method.adversarial:
    attack.check_eps()
    if method.attacks:
      attack.check_moves()
  names = config.evaluation.attacks
  if config.validation.attack == 'transfer':
    raise ConfigError("config.validation.attack must be an attack on the student itself, "
                      "such as 'pgd10', got 'transfer'")
  robustness.specs_from((*names, config.validation.attack), config.attack)
  if set(names) == {'transfer'} and not build.crafts_transfers(config):
    raise ConfigError(
        "config.evaluation.attacks holds 'transfer' alone, but method "
        f'{config.method!r} has no robust or single teacher to craft images on')


def _check_sizes(config, dataset):
  size = config.train.batch_size
  if len(dataset.train) < size:
    raise ConfigError(
        f'config.train.batch_size = {size} is more than the {len(dataset.train)} '
        f'training images of {dataset.name!r} that are left after the validation split')
  if not len(dataset.validation):
    raise ConfigError(
        f'config.data.validation = {config.data.validation} leaves no image to '
        'choose the best checkpoint with; hold out at least one')
  steps = config.train.epochs * build.steps_per_epoch(config)
  if steps > settings.MOST:
    raise ConfigError(
        f'config.train.epochs = {config.train.epochs} makes {steps} steps of {size} '
        f'images; at most {settings.MOST} can be counted')


def _check_networks(config, method, dataset, teacher_models):
  student = build.make_network(config.model, dataset, config.dtype)
  key = jax.random.key(0)
  jax.eval_shape(lambda variables: method.init_student(key, variables),
                 _abstract(student, dataset.image_shape))
  if set(teacher_models) != set(method.roles):
    return  # A run that is not there yet; what loads it looks again.
  for role, name in build.teacher_names(config).items():
    if config.detox.method and name == config.detox.teacher:
      teacher = build.make_network(teacher_models[role], dataset, config.dtype)
      detox.check(config.detox.method, config.detox.options, teacher,
                  _abstract(teacher, dataset.image_shape), dataset.image_shape)
  # Methods that compute certified bounds refuse other types than float32.
  if method.attach is not None or config.dtype != 'float32':
    teachers = tuple((role, build.make_network(model, dataset, config.dtype))
                     for role, model in teacher_models.items())
    try:
      _check_pair(config.method, config[config.method].to_json(),
                  config.attack.to_json(), student, dataset.image_shape, teachers)
    except UnsupportedPrimitiveError as error:
      raise ConfigError(f'config.method {config.method!r}: {error}') from error


@functools.lru_cache(maxsize=64)
def _abstract(network: Network, image_shape: tuple[int, ...]):
  """The shapes of a network's variables."""
  return jax.eval_shape(lambda: network.init(jax.random.key(0), image_shape))


@functools.lru_cache(maxsize=256)
def _check_pair(name: str, options: str, threat: str, student: Network,
                image_shape: tuple[int, ...], teachers: tuple[tuple[str, Network], ...]):
  """Raises ConfigError for networks that do not fit; once for all rows of a table."""
  method = distill.make(name, json.loads(options), threat=json.loads(threat), epochs=1)
  theirs = {role: _abstract(network, image_shape) for role, network in teachers}
  jax.eval_shape(lambda theirs: _one_step(method, student, {
      role: BoundNetwork(network, theirs[role]) for role, network in teachers},
      image_shape), theirs)


def _one_step(method: Method, student: Network, teachers, shape):
  """The loss of two images, to be traced: refuses networks that do not fit."""
  key = jax.random.key(0)
  network, variables, init_memory = student, student.init(key, shape), None
  if method.attach is not None:
    attached = method.attach(student, teachers, shape)
    network, init_memory = attached.network, attached.init_memory
    variables = attached.init(key, network.init(key, shape))
  memory = method.init_memory(teachers) if init_memory is None else init_memory(key)
  batch = Batch(
      image=jnp.zeros((2, *shape)), label=jnp.zeros(2, jnp.int32),
      key=jax.random.split(key), step=jnp.int32(0), epoch=jnp.int32(0),
      progress=jnp.float32(0))
  return method.phases[0][1](
      BoundNetwork(network, variables), teachers, memory, batch).loss
