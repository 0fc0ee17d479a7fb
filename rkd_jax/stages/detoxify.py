"""The defender's stage: a teacher is detoxified before anybody learns from it."""

import dataclasses
import pathlib
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from rkd_jax import data, detox, files
from rkd_jax.errors import CheckpointError, ConfigError
from rkd_jax.evaluation import robustness
from rkd_jax.evaluation.backdoor import feature_variance
from rkd_jax.models import masked, weights
from rkd_jax.models.taps import with_features
from rkd_jax.report import provenance
from rkd_jax.training import rng

DONE = pathlib.Path('tables', 'detox.json')
WEIGHTS = pathlib.Path('detox', 'teacher.safetensors')
_COSTS = 0.1  # A loss of accuracy that says that settings do not fit the network.


def check(config, dataset: data.Dataset) -> None:
  """Raises ConfigError where `config.detox` is wrong for this data set."""
  settings = config.detox
  if not settings.method:
    return
  detox.check_settings(settings.method, settings.options)
  if not round(settings.share * len(dataset.train)):
    raise ConfigError(
        f'config.detox.share = {settings.share} of the {len(dataset.train)} training '
        'images is none; use a larger share')


def clean_part(dataset: data.Dataset, share: float) -> data.Split:
  """The first `share` of the training images: the defender's data."""
  count = round(share * len(dataset.train))
  return data.Split(dataset.train.image[:count], dataset.train.label[:count])


def detoxify(config, workdir: pathlib.Path, dataset: data.Dataset, teacher, progress):
  """The teacher after `config.detox`; made once and kept in `workdir/detox`.

  Args:
    config: complete, with a method.
    workdir: of the student's run.
    dataset: clean; part of its training images is used.
    teacher: `stages.teachers.Teacher`.
    progress: names the stage.

  Returns:
    A `Teacher` that any method can learn from, its known backdoor included.
  """
  inputs = {'data': dataset.fingerprint, 'teacher': teacher.fingerprint}
  kept = _kept(workdir, dataset, teacher, inputs)
  if kept is not None:
    return kept
  settings = config.detox
  progress.stage(f'detox {settings.method}')
  split = clean_part(dataset, settings.share)
  began = time.perf_counter()
  network, variables = detox.run(
      settings.method, teacher.network, teacher.variables, split,
      dict(settings.options), key=rng.stream(config.seed, 'detox'))
  seconds = time.perf_counter() - began
  cleaned = dataclasses.replace(teacher, network=network, variables=variables)
  weights.save(workdir / WEIGHTS, variables)
  before, after = (_judge(config, dataset, of) for of in (teacher, cleaned))
  files.write_json(workdir / DONE, {
      'method': settings.method, 'examples': len(split), 'seconds': round(seconds, 2),
      'masked': _shapes(network, variables),
      'teacher': {'before': before, 'after': after}, 'inputs': inputs,
      'weights': weights.fingerprint(variables), **provenance.describe()})
  was, now = (of['clean']['accuracy'] for of in (before, after))
  if was - now > _COSTS:
    warnings.warn(
        f'detox {settings.method}: the accuracy of the {settings.teacher} teacher fell '
        f'from {was:.1%} to {now:.1%}, so its settings hardly fit this network; see '
        'config.detox.options, such as a lower learning_rate, and config.detox.share',
        stacklevel=2)
  return cleaned


def _judge(config, dataset, teacher) -> dict:
  """ACC, ASR and feature variances of a teacher on the test images."""
  size = config.evaluation.batch_size
  count = config.evaluation.examples or len(dataset.test)
  split = data.Split(dataset.test.image[:count], dataset.test.label[:count])
  found = robustness.evaluate(
      teacher.network, teacher.variables, split,
      {'clean': robustness.AttackSpec('clean')},
      key=rng.stream(config.seed, 'evaluate'), batch_size=min(size, count))
  names = [n for n in teacher.network.module.feature_names if n != 'features']
  features = lambda images: {name: feature for name, feature in with_features(
      teacher.network.module, teacher.variables, images)[1].items() if name in names}
  result = {'clean': found['clean'],
            'variance': feature_variance(features, split.image[:1000])}
  if teacher.backdoor is not None:
    result['asr'] = teacher.backdoor.success(
        teacher.network, teacher.variables, split, min(size, count))
    triggered = np.asarray(teacher.backdoor.trigger.apply(
        jnp.asarray(split.image[:1000])))
    result['variance_triggered'] = feature_variance(features, triggered)
  return result


def _shapes(network, variables):
  """Shapes of masks and references, and their form; None without any."""
  if not isinstance(network.module, masked.Masked):
    return None
  return {'form': network.module.form, 'shapes': {
      name: {kind: list(array.shape) for kind, array in found.items()}
      for name, found in variables[masked.COLLECTION].items()}}


def _kept(workdir, dataset, teacher, inputs):
  """The teacher that was made before; None, with a warning, if it cannot be trusted."""
  record = files.stored_json(workdir / DONE)
  if record is None:
    return None
  try:
    if record.get('inputs', inputs) != inputs:
      raise CheckpointError(
          f'{workdir / WEIGHTS}: made from other data or another teacher')
    network, variables = _load(workdir, dataset, teacher, record['masked'])
    if record.get('weights') not in (None, weights.fingerprint(variables)):
      raise CheckpointError(f'{workdir / WEIGHTS}: not the weights that the run wrote')
  except CheckpointError as error:
    warnings.warn(f'{error}: the teacher is detoxified again', stacklevel=3)
    return None
  return dataclasses.replace(teacher, network=network, variables=variables)


def _load(workdir, dataset, teacher, meta):
  """(network, variables) as they were written."""
  network = teacher.network
  like = weights.template(network.module, dataset.image_shape)
  if meta is not None:
    shapes = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(tuple(shape), jnp.float32),
        meta['shapes'], is_leaf=lambda node: isinstance(node, list))
    network, like = masked.wrap(network, like, shapes, meta['form'])
  flat = traverse_util.flatten_dict(like, keep_empty_nodes=True)
  loaded = traverse_util.flatten_dict(weights.load(workdir / WEIGHTS, like))
  # Collections without a leaf, such as the statistics of networks without BatchNorm.
  return network, traverse_util.unflatten_dict({**flat, **loaded})
