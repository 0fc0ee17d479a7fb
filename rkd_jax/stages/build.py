"""What the names in a config stand for: data set, method, network."""

import functools

import jax.numpy as jnp
import optax

from rkd_jax import data, distill, models
from rkd_jax.distill.method import Method
from rkd_jax.models.network import Network
from rkd_jax.training import averaging, awp, schedules


def load_data(config) -> data.Dataset:
  """The data set of a config; the last two are kept in memory."""
  settings = config.data
  return _load_data(
      settings.name, settings.data_dir or None, settings.validation,
      settings.train_examples or None, settings.test_examples or None)


@functools.lru_cache(maxsize=2)
def _load_data(name, data_dir, validation, train_examples, test_examples):
  return data.load(name, data_dir=data_dir, validation=validation,
                   train_examples=train_examples, test_examples=test_examples)


def make_method(config) -> Method:
  """The method of a config with its settings."""
  return distill.make(
      config.method, config.get(config.method), threat=config.attack,
      epochs=config.train.epochs)


def teacher_names(config) -> dict[str, str]:
  """{role of the method: name in `config.teachers`}."""
  return {role: config.single_teacher if role == 'teacher' else role
          for role in make_method(config).roles}


def crafts_transfers(config) -> bool:
  """Whether there is a teacher that the attack 'transfer' can craft images on."""
  return bool({'robust', 'teacher'} & set(make_method(config).roles))


def make_network(model: str, dataset: data.Dataset, dtype: str) -> Network:
  """A network for the classes of a data set."""
  return Network(models.create(
      model, num_classes=dataset.num_classes, dtype=jnp.dtype(dtype)))


def make_optimizer(config) -> optax.GradientTransformation:
  """The student's optimiser with its schedule."""
  options, optimizer = dict(config.schedule), dict(config.optimizer)
  name = options.pop('name')
  schedule = schedules.make_schedule(
      name, learning_rate=optimizer.pop('learning_rate'),
      epochs=config.train.epochs, steps_per_epoch=steps_per_epoch(config),
      warmup=options['warmup'],
      **{option: options[option] for option in schedules.options(name)})
  return schedules.make_optimizer(optimizer, schedule)


def make_averaging(config) -> averaging.Averaging:
  """How the student's weights are averaged."""
  return averaging.make(config.averaging, epochs=config.train.epochs,
                        steps_per_epoch=steps_per_epoch(config))


def make_gradient_at(config):
  """`gradient_at(epoch)`: at which weights the gradient is taken, see `training.awp`."""
  return awp.make(config.awp, epochs=config.train.epochs)


def steps_per_epoch(config) -> int:
  """Whole batches in the training split, clean copies of poisoned images included."""
  count = len(load_data(config).train)
  if config.backdoor.trigger and config.backdoor.copies:
    count += round(config.backdoor.rate * count)
  return count // config.train.batch_size


def step_passes(config) -> int:
  """Cost of a training step in passes over its batch, for progress bars."""
  method = make_method(config)
  attacked = config.attack.steps if method.adversarial and method.attacks else 0
  return 2 + attacked + (2 if config.awp.gamma else 0)


def training_passes(config) -> int:
  """Cost of a whole training, see `step_passes`."""
  return config.train.epochs * steps_per_epoch(config) * step_passes(config)


def first(split: data.Split, count: int) -> data.Split:
  """The first `count` examples of a split; all of them where count is 0."""
  count = count or len(split)
  return data.Split(split.image[:count], split.label[:count])
