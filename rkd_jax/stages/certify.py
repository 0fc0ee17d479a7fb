"""The certification stage: a finished student against its teacher, example by example."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from rkd_jax import bounds, faithfulness, files
from rkd_jax.bounds.compiled import Compiled
from rkd_jax.errors import ConfigError, RkdError
from rkd_jax.faithfulness import certified
from rkd_jax.models import weights
from rkd_jax.settings import RADII, count, many, one_of, positive
from rkd_jax.stages.teachers import Teacher
from rkd_jax.training import rng

PARTIAL = pathlib.Path('tables', 'faithfulness.partial.jsonl')


@dataclasses.dataclass(frozen=True)
class Settings:
  """What to certify, and how."""

  eps: tuple[float, ...] = many(
      (0.05,), 'Radii of the L-inf balls, each cut with [0, 1].', RADII)
  examples: int = count(
      100, 'Test images: the first that the teacher classifies correctly.')
  method: str = one_of('crown', faithfulness.METHODS, 'How FaithUB is bounded.')
  timeout_s: float = positive(60.0, 'Seconds an image, for the methods that search.')
  restarts: int = count(5, 'Restarts of the attack behind EmpLB.')
  steps: int = count(100, 'Steps of each attack.')
  batch: int = count(25, 'Images at a time; what an interruption may cost.')


def certify(config, workdir: pathlib.Path, dataset, teacher: Teacher,
            student: Teacher, settings: Settings, progress) -> dict[str, dict]:
  """{eps: {what: value of each example}}; continues what was interrupted.

  Every finished batch is a line of `tables/faithfulness.partial.jsonl`, found again by
  its settings, the weights of both networks and the images. It advances the bar by one
  for each example and radius.

  Raises:
    ConfigError: no example is classified correctly by the teacher.
    UnsupportedPrimitiveError: a network has an operation without bounds.
    RkdError: a lower bound is above the upper one, which would be a bug.
  """
  images, labels = first_right(config, dataset, teacher, settings.examples)
  path = workdir / PARTIAL
  known = _read(path)
  who = files.digest([
      weights.fingerprint(teacher.variables), weights.fingerprint(student.variables),
      files.digest_arrays({'image': images, 'label': labels})])[:16]
  compiled, found = Compiled(), {}
  for eps in settings.eps:
    parts = []
    for start in range(0, len(images), settings.batch):
      chunk = slice(start, start + settings.batch)
      key = json.dumps([who, eps, settings.method, settings.steps, settings.restarts,
                        settings.timeout_s if settings.method in certified.SEARCHES
                        else None, start, len(images[chunk]), config.seed])
      if key not in known:
        known[key] = _batch(config, teacher, student, images[chunk], labels[chunk], eps,
                            settings, compiled, progress)
        files.append_line(path, {'key': key, 'values': known[key]})
      parts.append(known[key])
      progress.advance(len(images[chunk]))
    found[str(eps)] = {name: sum((part[name] for part in parts), [])
                       for name in parts[0]}
  return found


def _read(path):
  """Finished batches by key."""
  return {row['key']: row['values'] for row in files.read_lines(path)}


def first_right(config, dataset, teacher: Teacher, count: int):
  """(float32[N, ...], int[N]): test images that the teacher gets right, N <= count."""
  images, labels = [], []
  size = min(config.evaluation.batch_size, len(dataset.test))
  predict = Compiled()
  for start in range(0, len(dataset.test), size):
    start = min(start, len(dataset.test) - size)
    image = jnp.asarray(dataset.test.image[start:start + size], jnp.float32) / 255
    label = np.asarray(dataset.test.label[start:start + size])
    logits, _ = predict('predict', teacher.network.predict, teacher.variables, image)
    right = np.argmax(logits, axis=1) == label
    images.append(np.asarray(image)[right])
    labels.append(label[right])
    if sum(map(len, labels)) >= count:
      break
  images, labels = np.concatenate(images)[:count], np.concatenate(labels)[:count]
  if not len(labels):
    raise ConfigError('the teacher classifies no test example correctly: is it a teacher '
                      f'for {config.data.name}?')
  return images, labels


def _batch(config, teacher, student, images, labels, eps, settings, compiled, progress):
  """Lists of values, one entry an example."""
  count = len(images)
  # A short batch is filled up, so that nothing is compiled again for it.
  fill = lambda a: np.concatenate(
      [a, np.repeat(a[-1:], settings.batch - count, axis=0)])
  images, labels = jnp.asarray(fill(images)), jnp.asarray(fill(labels))
  key = rng.stream(config.seed, 'certify')
  ball = bounds.linf_ball(images, jnp.float32(eps), lower=0.0, upper=1.0)
  networks = (teacher.network, student.network)
  variables = (teacher.variables, student.variables)
  bind = lambda both: [lambda x, n=n, v=v: n.predict(v, x)
                       for n, v in zip(networks, both)]
  fns = bind(variables)

  def attack(both, ball, labels, key):
    run = lambda classes: faithfulness.witness(
        *bind(both), ball, key=key, classes=classes, steps=settings.steps,
        restarts=settings.restarts)
    every = run(None)
    return every, run(labels), [jnp.argmax(fn(every.point), axis=1) for fn in bind(both)]

  progress.detail(f'eps {eps}: attack')
  (every, own, said), _ = compiled('attack', attack, variables, ball, labels, key)
  lower = faithfulness.exactly(*fns, every.point)
  lower_own = faithfulness.exactly(*fns, own.point, np.asarray(labels))
  progress.detail(f'eps {eps}: {settings.method}')
  pure = settings.method if settings.method in certified.PURE else 'crown'

  def bound(both, ball):
    return certified.with_agreement(*bind(both), ball, method=pure)

  (each, agree), seconds = compiled('bound', bound, variables, ball)
  each = np.asarray(each, np.float64)
  upper, seconds = each.max(axis=1), np.full(len(each), seconds / len(each))
  upper_own = each[np.arange(len(each)), np.asarray(labels)]
  if settings.method in certified.SEARCHES:
    small = jax.tree.map(lambda a: a[:count], ball)
    options = {'timeout_s': settings.timeout_s}
    if settings.method == 'branch_and_bound':
      options |= {'key': key, 'restarts': settings.restarts, 'progress': (
          lambda i, up, low: progress.detail(f'eps {eps}: {i + 1}/{count} '
                                             f'[{low:.3f}, {up:.3f}]'))}
    searched = certified.SEARCHES[settings.method](*fns, small, **options)
    upper = np.minimum(upper[:count], searched.upper)
    lower = np.maximum(lower[:count], searched.lower)
    seconds = searched.seconds
  values = {
      'lower': lower, 'upper': upper, 'lower_predicted': lower_own,
      'upper_predicted': np.minimum(upper_own[:count], upper[:count]),
      'agrees': np.asarray(agree), 'differs': np.asarray(said[0] != said[1]),
      'seconds': seconds}
  values = {name: np.asarray(value)[:count].tolist() for name, value in values.items()}
  for low, high in zip(values['lower'], values['upper']):
    if low > high:
      raise RkdError(f'EmpLB {low} is above FaithUB {high} at eps {eps}: a bound is '
                     'wrong. Please report it with this run')
  return values
