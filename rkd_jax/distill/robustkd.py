"""RobustKD's distillation: a student of (detoxified) features, arXiv:2406.03409.

What is detoxified is the teacher, before (`config.detox`); from one that is not, this
is feature distillation as usual, through which a backdoor may pass.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rkd_jax import attacks, losses
from rkd_jax.distill.method import Attachment, Method, Outcome
from rkd_jax.errors import ConfigError
from rkd_jax.losses import features
from rkd_jax.models import connected, masked
from rkd_jax.models.following_norm import following_norm
from rkd_jax.models.network import BoundNetwork, Network
from rkd_jax.models.taps import with_features
from rkd_jax.sections import Attack
from rkd_jax.settings import count, not_negative, one_of, radius, text

SUMMARY = 'RobustKD: features of a detoxified teacher (OFD, attention, plain, head)'

FEATURES = ('ofd', 'attention', 'plain', 'none')
HEADS = ('own', 'reused')


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `robustkd`."""

  features: str = one_of(
      'ofd', FEATURES, 'Distance D of features; attention needs no connectors.')
  feature_weight: float = not_negative(
      1e-3, "Weight b of D; published for 'ofd'.", when={'features': FEATURES[:-1]})
  cross_entropy: float = not_negative(1.0, 'Weight a of the labels; 0: no labels.')
  head: str = one_of(
      'own', HEADS, "'reused': the student ends in the teacher's classifier after a "
      'dense projection P of its penultimate vectors z, fitted to the teacher\'s (as '
      'SimKD, arXiv:2203.14001, with a linear projector).')
  head_weight: float = not_negative(
      1.0, 'Weight c of the distance of the vectors.', when={'head': ('reused',)})
  layers: str = text(
      '', "The teacher's layers, 'stage1,stage3'; '' for every stage.",
      when={'features': FEATURES[:-1]})
  student_layers: str = text(
      '', "The student's in the same order; '' for the same names.",
      when={'features': FEATURES[:-1]})
  universal_eps: float = radius(
      0.0, 'If positive, the L-inf radius of one perturbation d for the whole batch: '
      'the terms in D and z are also taken between the teacher on x and the student on '
      'x + d.')
  universal_steps: int = count(
      3, 'Steps, of 2.5 eps / steps, that drive d.', when={'universal_eps': True})
  universal_weight: float = not_negative(
      1.0, 'Weight of the terms under d.', when={'universal_eps': True})


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """a CE(S(x), y) + b sum_i w_i D_i(S_i, T_i) + c ||P z_S - z_T||^2 (per example).

  Args:
    settings: Those declared above.
    threat: not used.
    epochs: not used.

  Raises:
    ConfigError: an invalid setting; when attached, networks that do not fit.
  """
  del threat, epochs

  def objective(student, teachers, memory, batch):
    teacher = teachers['teacher']
    teacher_logits, targets = with_features(
        teacher.network.module, teacher.variables, batch.image)
    pairs = _pairs(settings, teacher.network, student.network)
    compare = lambda found: _compare(settings, pairs, teacher, found, targets)
    logits, found, student = _train(student, batch.image)
    loss_clean = losses.cross_entropy(logits, batch.label)
    loss_features = compare(found)
    loss = settings.cross_entropy * loss_clean + loss_features
    metrics = {'loss_clean': loss_clean, 'loss_features': loss_features,
               'accuracy_clean': losses.correct(logits, batch.label)}
    if settings.universal_eps:
      moved = _universal(settings, student, teacher_logits, batch)
      _, found, student = _train(student, moved)
      loss_universal = compare(found)
      loss += settings.universal_weight * loss_universal
      metrics['loss_universal'] = loss_universal
    return Outcome(loss, student, memory, metrics)

  return Method('robustkd', ('teacher',), ((0, objective),), adversarial=False,
                attach=lambda *networks: _attach(settings, *networks))


def _pairs(settings, teacher: Network, student: Network) -> list[tuple[str, str]]:
  """[(the teacher's layer, the student's), ...]."""
  if settings.features == 'none':
    return []
  known = {'layers': teacher.module.feature_names,
           'student_layers': student.module.feature_names}
  theirs = _listed(settings.layers) or [
      name for name in known['layers'] if name.startswith('stage')]
  ours = _listed(settings.student_layers) or theirs
  for key, names in (('layers', theirs), ('student_layers', ours)):
    for name in names:
      if name not in known[key]:
        raise ConfigError(f'robustkd.{key}: there is no tapped layer {name!r}, there '
                          f'are {", ".join(known[key])}')
  if len(ours) != len(theirs):
    raise ConfigError(f'robustkd: {len(theirs)} layers of the teacher but {len(ours)} '
                      'of the student')
  return list(zip(theirs, ours))


def _listed(text):
  return [name.strip() for name in text.split(',') if name.strip()]


def _attach(settings, student: Network, teachers: Mapping[str, BoundNetwork],
            image_shape) -> Attachment:
  """The student with its connectors; refuses what does not fit."""
  teacher = teachers['teacher']
  image = jnp.zeros((1, *image_shape))
  fresh = jax.eval_shape(lambda: student.init(jax.random.key(0), image_shape))
  theirs, ours = (_feature_shapes(bound, image)
                  for bound in (teacher, BoundNetwork(student, fresh)))
  widths = {}
  for layer, own in _pairs(settings, teacher.network, student):
    if theirs[layer][1:-1] != ours[own][1:-1]:
      raise ConfigError(
          f"robustkd: the teacher's {layer!r} is {theirs[layer][1:]}, the student's "
          f'{own!r} {ours[own][1:]}; heights and widths must be equal: choose other '
          'layers or student_layers')
    if settings.features == 'ofd':
      following_norm(teacher.network.module, teacher.variables, layer)
    if settings.features != 'attention':
      widths[own] = theirs[layer][-1]
  reused = settings.head == 'reused'
  if reused:
    widths[connected.VECTOR] = theirs[connected.VECTOR][-1]
  module = connected.Connected(student.module, tuple(widths.items()), reused)

  def init(key, variables):
    del key
    if not reused:
      return variables
    _, own = masked.unwrap(teacher.network.module, teacher.variables)
    return connected.init_head(variables, own['params']['head'])

  return Attachment(Network(module), init, connected.detached)


def _compare(settings, pairs, teacher, found, targets) -> jax.Array:
  """The terms in D and z, from the student's features: float32[B]."""
  total = jnp.zeros(len(targets[connected.VECTOR]))
  for i, (layer, own) in enumerate(pairs, 1):
    total += settings.feature_weight * _distance(
        settings.features, teacher, layer, found[own], targets[layer],
        2.0 ** (i - len(pairs)))
  if settings.head == 'reused':
    total += settings.head_weight * features.plain(
        found[connected.VECTOR], targets[connected.VECTOR])
  return total


def _distance(kind, teacher, layer, found, target, scale):
  if kind == 'attention':
    return features.attention(found, target)
  if kind == 'plain':
    return features.plain(found, target)
  norm = following_norm(teacher.network.module, teacher.variables, layer)
  margin = 0.0
  if norm is not None:
    target = norm(target)
    margin = features.negative_response(norm.bias, norm.scale)
  return scale * features.overhaul(found, target, margin)


def _train(student, images):
  """Training-mode logits, connected (else tapped) features, and the student after."""
  module, tapped = student.network.module, {}

  def read(name, feature):
    tapped[name] = feature
    return feature

  (logits, found), updated = module.apply(
      student.variables, images, train=True, tap=read, method='connected',
      mutable=['batch_stats'])
  stats = updated.get('batch_stats', student.variables['batch_stats'])
  after = dataclasses.replace(
      student, variables={**student.variables, 'batch_stats': stats})
  return logits, {**tapped, **found}, after


def _universal(settings, student, teacher_logits, batch):
  """The batch under one perturbation that drives the student from the teacher."""
  eps, steps = settings.universal_eps, settings.universal_steps
  away = attacks.kl_to(teacher_logits)
  # As one example with the whole batch as its output, so that one d serves all.
  one = attacks.pgd(
      lambda d: student.frozen().predict(jnp.clip(batch.image + d, 0, 1)),
      jnp.zeros((1, *batch.image.shape[1:])), None, key=batch.key[:1], eps=eps,
      step_size=2.5 * eps / steps, steps=steps, lower=-1.0, upper=1.0,
      objective=lambda logits: jnp.mean(away(logits), keepdims=True))
  return jnp.clip(batch.image + one, 0, 1)


def _feature_shapes(bound, image):
  _, found = jax.eval_shape(
      lambda variables: with_features(bound.network.module, variables, image),
      bound.variables)
  return {name: feature.shape for name, feature in found.items()}
