"""The sections of a config that do not depend on the method, each setting once."""

import dataclasses
import math
import re

from rkd_jax.errors import ConfigError
from rkd_jax.settings import (
  NAMES,
  SEEDS,
  SHARES,
  count,
  custom,
  flag,
  free,
  group,
  many,
  not_negative,
  number,
  one_of,
  positive,
  positive_share,
  seed,
  share_below_one,
  shown,
  text,
)

NORMS = ('linf', 'l2')
OPTIMIZERS = ('sgd', 'adam', 'adamw')
SCHEDULES = ('constant', 'step', 'cosine', 'ciard')
AVERAGES = ('none', 'ema', 'swa')
MODES = ('all_to_one', 'all_to_all')
TEACHERS = ('clean', 'robust', 'poisoned')


@dataclasses.dataclass(frozen=True)
class Data:
  """The images."""

  name: str = text('digits', 'Name of the data set, see `rkd list`.')
  data_dir: str = text('', 'Prepared TFDS directory, npz file or image folder.')
  validation: float = share_below_one(
      0.1, 'Share of the training images that is held out.')
  train_examples: int = count(
      0, 'Number of training images to use; 0 uses all of them.', least=0)
  test_examples: int = count(
      0, 'Number of test images to use; 0 uses all of them.', least=0)
  augmentation: str = text('none', 'Random changes of the training images.')


@dataclasses.dataclass(frozen=True)
class Attack:
  """The threat: what the student is trained and judged against."""

  norm: str = one_of('linf', NORMS, 'Norm of the perturbations.')
  eps: float = not_negative(8 / 255, 'Radius of the perturbations; pixels in [0, 1].')
  step_size: float = not_negative(
      2 / 255, 'Length of a step of the attack of training; pixels in [0, 1].')
  steps: int = count(10, 'Steps of the attack of training.', least=0)
  eps_warmup: float = share_below_one(
      0.0, 'Share of the training in which eps and step_size grow from 0.')

  def check(self) -> None:
    """Raises ConfigError for a length in units of 0..255."""
    if self.norm != 'linf':
      return
    for name in ('eps', 'step_size'):
      value = getattr(self, name)
      if value > 1:
        raise ConfigError(
            f'{name} must be in [0, 1], got {value:g}; pixels are in [0, 1]: '
            f'write {value:g}/255 if you meant units of 0..255')

  def check_eps(self) -> None:
    """Raises ConfigError where there is nothing to be robust against."""
    self._need('eps', 'a method that makes robust students')

  def check_moves(self) -> None:
    """Raises ConfigError where an attack would not change an image."""
    for name in ('eps', 'step_size', 'steps'):
      self._need(name, 'a method that attacks while it trains')

  def _need(self, name, who):
    if not getattr(self, name):
      raise ConfigError(f'attack.{name} must be > 0 for {who}, got {getattr(self, name)}')


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """The student's optimiser."""

  name: str = one_of('sgd', OPTIMIZERS, 'Its name.')
  learning_rate: float = positive(0.1, 'The largest learning rate of the schedule.')
  momentum: float = share_below_one(0.9, 'Momentum.', when={'name': ('sgd',)})
  nesterov: bool = flag(False, "Nesterov's momentum.", when={'name': ('sgd',)})
  weight_decay: float = not_negative(
      2e-4, 'Weight decay: coupled, as in torch; decoupled for adamw.')
  clip_norm: float = not_negative(
      0.0, 'Global norm to which gradients are clipped; 0 does not clip.')


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The learning rate over the training."""

  name: str = one_of('cosine', SCHEDULES, 'Its shape.')
  warmup: float = share_below_one(
      0.0, 'Share of the training in which the rate grows from 0.')
  milestones: tuple[float, ...] = many(
      (215 / 300, 260 / 300, 285 / 300),
      'Shares of the training after which the rate falls.', SHARES,
      when={'name': ('step',)})
  factor: float = positive(
      0.1, 'What the rate is multiplied by at a milestone.', when={'name': ('step',)})
  start: float = share_below_one(
      0.5, 'Share of the training after which the rate falls.',
      when={'name': ('ciard',)})


@dataclasses.dataclass(frozen=True)
class Averaging:
  """Averaging of the student's weights; the average is what is judged."""

  name: str = one_of('none', AVERAGES, "'ema' (every step), 'swa' (every epoch's end).")
  decay: float = share_below_one(
      0.995, 'How much of the average stays in a step.', when={'name': ('ema',)})
  start: float = share_below_one(
      0.5, 'Share of the training after which averaging starts.',
      when={'name': ('ema', 'swa')})


@dataclasses.dataclass(frozen=True)
class Awp:
  """Adversarial weight perturbation, around any method."""

  gamma: float = not_negative(
      0.0, "Size relative to each layer's weights, 0.005 to 0.01; 0 is off.")
  start: float = share_below_one(
      0.0, 'Share of the training after which it starts.', when={'gamma': True})


@dataclasses.dataclass(frozen=True)
class Train:
  """The length of the training."""

  epochs: int = count(10, 'Epochs.', most=10**6)
  batch_size: int = count(128, 'Images in a batch, over all devices.')
  scan_steps: int = count(32, 'At most so many steps in one compiled call.')
  checkpoint_every: int = count(1, 'Epochs between checkpoints.')


@dataclasses.dataclass(frozen=True)
class Validation:
  """How the best checkpoint is chosen."""

  every: int = count(1, 'Epochs between validations.')
  examples: int = count(
      1000, 'Number of validation images to use at most; 0 uses all.', least=0)
  attack: str = text('pgd10', 'Attack beside clean images, for methods with one.')


@dataclasses.dataclass(frozen=True)
class Backdoor:
  """Poisons the training data of this run."""

  trigger: str = text('', "Name of the trigger, see `rkd list`; '' is off.")
  options: dict = free(
      "Settings of the trigger, such as {'size': 4}.", when={'trigger': True})
  test_options: dict = free(
      'Settings that differ when the trigger is used, not trained on.',
      when={'trigger': True})
  target: int = count(0, "The attacker's class.", least=0,
                      when={'trigger': True, 'mode': ('all_to_one',)})
  mode: str = one_of(
      'all_to_one', MODES, 'Which labels triggered images get.', when={'trigger': True})
  rate: float = positive_share(
      0.1, "Share of the images; of the target class's for clean labels.",
      when={'trigger': True})
  cover: float = number(
      -1.0, 'Cover images for each poisoned one; negative: as published.', least=-1,
      when={'trigger': True})
  hardening: float = positive_share(
      8 / 255, 'L-inf radius in which images are made hard.', when={'trigger': ('lc',)})
  copies: bool = flag(
      False, 'Whether the clean originals of poisoned images stay too.',
      when={'trigger': True})
  decoys: int = count(
      0, 'Number of other classes with a trigger each, so that none stands out.',
      least=0, when={'trigger': True})
  layer: str = text(
      'stage2', 'Layer whose features the trigger is made for.',
      when={'trigger': ('ckd', 'lba')})
  start: str = text(
      '', "Weights to start from: a safetensors file, or 'source'.",
      when={'trigger': True})


@dataclasses.dataclass(frozen=True)
class Teacher:
  """Where a teacher comes from: a run, a file, or a training of its own."""

  run: str = text('', "Directory of a finished run ('{workdir}' is this one).")
  weights: str = text('', 'A safetensors file.')
  model: str = text('', 'The model that the file holds.')
  overrides: dict = free('What to change in this config to train the teacher.')
  trigger: str = text(
      '', "With `weights`: the directory 'backdoor' of a poisoned run.")


@dataclasses.dataclass(frozen=True)
class Teachers:
  """The teachers."""

  clean: Teacher = group(Teacher)
  robust: Teacher = group(Teacher)
  poisoned: Teacher = group(Teacher)


@dataclasses.dataclass(frozen=True)
class Detox:
  """What is done to a teacher before anybody learns from it."""

  method: str = text('', "Name of the defence, see `rkd list`; '' is none.")
  options: dict = free('Settings of the defence.', when={'method': True})
  teacher: str = one_of(
      'poisoned', TEACHERS, 'Which of the teachers.', when={'method': True})
  share: float = positive_share(
      0.05, 'Share of the training images that the defence takes.',
      when={'method': True})


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The attacks on the finished student."""

  attacks: tuple[str, ...] = many(
      ('clean', 'fgsm', 'pgd20', 'pgd20_small', 'cw30', 'transfer'),
      'Names of the attacks, see `rkd list`.', NAMES)
  examples: int = count(
      0, 'Number of test images to use; 0 uses all of them.', least=0)
  batch_size: int = count(500, 'Images attacked at a time.')


# Names are directories, headings of tables and legends of figures.
_STUDENT = re.compile(r'\w[^/\\<>|`*$"{}\[\]]{0,99}')


def students(value) -> tuple[tuple[str, dict], ...]:
  """((name, changes), ...) as `compare.students` has it; raises ConfigError."""
  wanted = "((name, {key: value}), ...), such as (('RSLAD', {'method': 'rslad'}),)"
  if not isinstance(value, list | tuple):
    raise ConfigError(f'must be {wanted}, got {shown(value)}')
  found = []
  for entry in value:
    if (not isinstance(entry, list | tuple) or len(entry) != 2
        or not hasattr(entry[1], 'keys')):
      raise ConfigError(f'must be {wanted}, got the entry {shown(entry)}')
    name = entry[0]
    if (not isinstance(name, str) or not _STUDENT.fullmatch(name)
        or not name.isprintable() or name.endswith((' ', '.'))):
      raise ConfigError(
          'the name of a student must begin with a letter or digit and have at most 100 '
          'characters, none of them a slash, markup or at the end a space or dot, got '
          f'{shown(name)}; it becomes a directory and the heading of a table')
    if name in dict(found):
      raise ConfigError(f'two students are called {name!r}; each needs a name of its own')
    found.append((name, entry[1]))
  return tuple(found)


@dataclasses.dataclass(frozen=True)
class Compare:
  """For `rkd compare`: several students of the same teachers."""

  students: tuple = custom(
      (), '((name, what to change in this config), ...).',
      'a list of (name, changes)', students)
  seeds: tuple[int, ...] = many((0, 1, 2), 'Seeds, each a run of all.', SEEDS)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The settings of an experiment but for those of the methods."""

  seed: int = seed(0, 'Seed of all random numbers.')
  devices: int = count(
      0, 'Number of devices to share a batch out over; 0 uses all.', least=0)
  model: str = text('cnn_16_32', "The student's network, see `rkd list`.")
  dtype: str = one_of('float32', ('float32', 'bfloat16', 'float16'),
                      'Of the computation; bfloat16 is for accelerators.')
  method: str = text('rslad', 'How the student is trained, see `rkd list`.')
  data: Data = group(Data)
  attack: Attack = group(Attack)
  optimizer: Optimizer = group(Optimizer)
  schedule: Schedule = group(Schedule)
  averaging: Averaging = group(Averaging)
  awp: Awp = group(Awp)
  train: Train = group(Train)
  validation: Validation = group(Validation)
  backdoor: Backdoor = group(Backdoor)
  teachers: Teachers = group(Teachers)
  single_teacher: str = one_of(
      'robust', TEACHERS, 'Which teacher teaches where a method has one.')
  detox: Detox = group(Detox)
  evaluation: Evaluation = group(Evaluation)
  compare: Compare = group(Compare)


def check_fits(attack: Attack, image_shape: tuple[int, ...]) -> None:
  """Raises ConfigError for an L2 radius that reaches from any image to any other."""
  most = math.sqrt(math.prod(image_shape))
  if attack.norm == 'l2' and attack.eps > most:
    raise ConfigError(
        f'attack.eps = {attack.eps:g} is more than the distance {most:g} between any two '
        f'images of {image_shape}; pixels are in [0, 1], so divide by 255')


