"""The training stage: one student to the end of its epochs, or what is left."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable, Mapping

from rkd_jax import files, signals
from rkd_jax.data import augment
from rkd_jax.distill.method import Attachment, Batch, Method
from rkd_jax.evaluation import robustness
from rkd_jax.models import weights
from rkd_jax.models.network import BoundNetwork
from rkd_jax.report import provenance
from rkd_jax.stages import backdoor, build, trained
from rkd_jax.stages.teachers import Teacher
from rkd_jax.training import loop, parallel, rng, step
from rkd_jax.training import state as state_lib
from rkd_jax.training.checkpoint import SCORE, Checkpoints
from rkd_jax.training.metrics import MetricsLog


def train(config, workdir: pathlib.Path, dataset,
          teachers: Mapping[str, Teacher], progress, start=None) -> None:
  """Trains the student and writes its weights; nothing if that was done.

  Weights that are damaged or gone are written again, from the checkpoints.

  `start`: variables to begin with in place of fresh ones.
  """
  progress.stage(f'{config.method} {config.model}')
  method = build.make_method(config)
  if trained.is_whole(workdir) and (
      method.crafted is None or backdoor.is_whole(workdir / backdoor.FOLDER)):
    progress.advance(build.training_passes(config))
    return
  mesh = parallel.make_mesh(config.devices)
  parallel.check_batch_size(config.train.batch_size, mesh)
  student = build.make_network(config.model, dataset, config.dtype)
  attached = _attach(method, student, dataset, teachers)
  student = attached.network
  tx = build.make_optimizer(config)
  state = _initial_state(config, method, attached, dataset, teachers, tx)
  if start is not None:
    state = state.replace(
        variables=start, averaged=build.make_averaging(config).init(start))
  state = parallel.replicate(state, mesh)
  plan = loop.Plan(
      scan_at=_compiler(config, method, student, teachers, tx, mesh),
      frozen=parallel.replicate(
          {role: teacher.variables for role, teacher in teachers.items()}, mesh),
      data=parallel.replicate({'image': dataset.train.image,
                               'label': dataset.train.label}, mesh),
      order_key=rng.stream(config.seed, 'order'),
      epochs=config.train.epochs, batch_size=config.train.batch_size,
      scan_steps=config.train.scan_steps,
      validate=_validator(config, method, student, teachers, dataset),
      validate_every=config.validation.every,
      checkpoint_every=config.train.checkpoint_every,
      step_passes=build.step_passes(config))
  _fit(workdir, plan, state, method, attached.detach, progress)


def _bound(teachers):
  return {role: BoundNetwork(teacher.network, teacher.variables)
          for role, teacher in teachers.items()}


def _attach(method, student, dataset, teachers) -> Attachment:
  """The student with what the method trains beside it: nothing, for most."""
  if method.attach is None:
    return Attachment(student, method.init_student, lambda variables: variables)
  return method.attach(student, _bound(teachers), dataset.image_shape)


def _initial_state(config, method, attached, dataset, teachers, tx):
  if attached.init_memory is None:
    memory = method.init_memory(_bound(teachers))
  else:
    memory = attached.init_memory(rng.stream(config.seed, 'memory'))
  create = parallel.compile_fn(functools.partial(
      state_lib.create, attached.network, dataset.image_shape, tx,
      init_student=attached.init, averaging=build.make_averaging(config)))
  return create(memory, init_key=rng.stream(config.seed, 'init'),
                train_key=rng.stream(config.seed, 'train'))


def _compiler(config, method, student, teachers, tx, mesh) -> Callable:
  """`scan_at(epoch)`: compiled once for each objective and gradient."""
  networks = {role: teacher.network for role, teacher in teachers.items()}
  gradient_at = build.make_gradient_at(config)

  @functools.cache
  def compiled(objective, gradient):
    return parallel.compile_scan(step.make_scan(step.make_train_step(
        objective, Batch, student, networks, tx,
        augment=augment.AUGMENTATIONS[config.data.augmentation],
        steps_per_epoch=build.steps_per_epoch(config), gradient=gradient,
        averaging=build.make_averaging(config))), mesh)

  return lambda epoch: compiled(method.objective_at(epoch), gradient_at(epoch))


def _fit(workdir, plan, state, method, detach, progress) -> None:
  with contextlib.closing(Checkpoints(workdir / 'checkpoints')) as checkpoints:
    state, begun = checkpoints.resume(state) or (state, None)
    start = int(state.step)
    began = time.perf_counter()
    with (contextlib.closing(MetricsLog(workdir, step=start)) as log,
          signals.deferred()):
      state = loop.fit(state, plan, checkpoints, log, progress, begun)
    seconds = time.perf_counter() - began
    best = checkpoints.best
    written = _export(workdir, 'last', state, method, detach)
    written |= _export(workdir, 'best', checkpoints.restore(state, best), method, detach)
  done = files.stored_json(workdir / trained.DONE)
  if done is None or done.get('weights') != written:
    files.write_json(workdir / trained.DONE, {
        'best_step': best, 'last_step': plan.epochs * plan.steps_per_epoch,
        'steps_per_epoch': plan.steps_per_epoch,
        'train_examples': len(plan.data['label']),
        'seconds': round(seconds, 2), 'seconds_from_step': start,
        'weights': written, **provenance.describe()})


def _export(workdir, when, state, method: Method, detach) -> dict[str, str]:
  """Writes the weights of a state; {name of the file: digest}."""
  of = {'student': detach(state.judged), **method.retrained(state.memory)}
  for who, variables in of.items():
    weights.save(trained.weights_file(workdir, who, when), variables)
  if method.crafted is not None and when == 'best':
    backdoor.keep(workdir, method.name, method.crafted(state.memory))
  return {f'{who}-{when}': weights.fingerprint(variables)
          for who, variables in of.items()}


def _validator(config, method, student, teachers, dataset) -> Callable:
  """`validate(state) -> metrics` on the validation split, with a 'score'.

  The score is the mean of clean and attacked accuracy (clean alone for methods
  without an attack). Teachers that are being retrained are attacked themselves.
  """
  names = ['clean'] + [config.validation.attack] * method.adversarial
  split = build.first(dataset.validation, config.validation.examples)
  check = functools.partial(
      robustness.evaluate, split=split,
      specs=robustness.specs_from(names, config.attack),
      key=rng.stream(config.seed, 'validate'),
      batch_size=min(config.evaluation.batch_size, len(split)))

  def validate(state):
    results = check(student, state.judged)
    values = {name: results[name]['accuracy'] for name in names}
    values[SCORE] = sum(values.values()) / len(names)
    for role, variables in method.retrained(state.memory).items():
      white_box = check(teachers[role].network, variables)
      values |= {f'{role}_teacher_{name}': white_box[name]['accuracy']
                 for name in names}
    return values

  return validate
