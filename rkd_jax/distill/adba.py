"""ADBA: a backdoor made to survive distillation (Ge et al., ACM Multimedia 2021).

"Anti-Distillation Backdoor Attacks: Backdoors Can Really Survive in Knowledge
Distillation", doi:10.1145/3474085.3475254. The attacker distils a shadow student while
training the poisoned teacher, and moves the trigger until both obey it. What is trained
here is the *teacher* of somebody else; its optimiser is the config's.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from rkd_jax import losses, models
from rkd_jax.distill.method import Attachment, Crafted, Method, Outcome
from rkd_jax.errors import ConfigError
from rkd_jax.models.network import Network
from rkd_jax.sections import Attack
from rkd_jax.settings import (
  count,
  not_negative,
  one_of,
  positive,
  positive_share,
  share,
  text,
)
from rkd_jax.training.schedules import sgd_direction

SUMMARY = 'ADBA: a poisoned teacher whose trigger also fools a shadow student'

# alpha, h and the learning rates are not in the text; these are common ones. beta = 1
# weighs clean and triggered images alike.


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of `adba`."""

  shadow: str = text('cnn_8_16', 'Model name of the shadow student F_s.')
  target: int = count(0, "The attacker's class k.", least=0)
  beta: float = not_negative(1.0, 'Weight of the triggered images; 1 weighs both alike.')
  alpha: float = share(0.8, "Weight of the teacher in the shadow's loss.")
  temperature: float = positive(8.0, "Temperature h of the shadow's distillation.")
  mu: float = not_negative(0.05, "Weight of the mask's norm.")
  norm: float = one_of(2.0, (1.0, 2.0), 'Norm p of the mask [H, W].')
  opacity: float = positive_share(1.0, 'Upper bound of the mask m.')
  brightest: float = positive_share(
      1.0, "Upper bound of the pattern d, the text's 1 / c.")
  shadow_learning_rate: float = positive(
      0.01, "The shadow's constant rate of SGD with momentum 0.9.")
  trigger_learning_rate: float = positive(0.05, "The trigger's rate of Adam.")

_MASK_START = -2.0  # sigmoid(-2) = 0.12 of the opacity: images stay recognisable.


def make(settings: Settings, *, threat: Attack, epochs: int) -> Method:
  """Teacher F_t, shadow F_s and trigger (m, d), one gradient step of each in every batch.

  x* = (1 - m) x + m d, k the target class, and with the text's numbers of equations

    (5) L_t = CE(F_t(x), y) + beta CE(F_t(x*), k)                      over F_t
    (3) L_s = alpha h^2 KL(F_t(x)/h || F_s(x)/h) + (1 - alpha) CE(F_s(x), y)  over F_s
    (7) L_m = CE(F_t(x*), k) + CE(F_s(x*), k) + mu ||m||_p             over m and d

  all three at the values before the step. The shadow sees clean images alone, as the
  user's student will. The training data must be clean (`config.backdoor.trigger = ''`);
  the trigger is written to `backdoor/` of the run, from the checkpoint that is exported
  as the best: validate the last epoch alone, early triggers are unfinished.

  Args:
    settings: Those declared above.
    threat, epochs: not used.

  Raises:
    ConfigError: an invalid setting; when attached, an unknown shadow or a target that
      is no class.
  """
  del threat, epochs
  direction = sgd_direction(momentum=0.9, weight_decay=0.0)
  tx = optax.adam(settings.trigger_learning_rate)

  def objective(student, teachers, memory, batch):
    del teachers
    target = jnp.full_like(batch.label, settings.target)
    shadow = Network(_shadow(settings, student.network))
    stamp = lambda free: stamped(batch.image, *bounded(settings, free))
    logits, after = student.train(batch.image)
    triggered_logits, after = after.train(stamp(memory['trigger']))
    loss_clean = losses.cross_entropy(logits, batch.label)
    loss_trigger = losses.cross_entropy(triggered_logits, target)

    def shadow_loss(params):
      own, moved = shadow.train({**memory['shadow'], 'params': params}, batch.image)
      soft = losses.softened_kl(own, student.frozen().predict(batch.image),
                                temperature=settings.temperature)
      hard = losses.cross_entropy(own, batch.label)
      return batch.mean(settings.alpha * soft + (1 - settings.alpha) * hard), moved

    def mask_loss(free):
      images = stamp(free)
      obeyed = losses.cross_entropy(student.frozen().predict(images), target)
      shadowed = losses.cross_entropy(shadow.predict(memory['shadow'], images), target)
      mask, _ = bounded(settings, free)
      return (batch.mean(obeyed + shadowed)
              + settings.mu * jnp.linalg.norm(jnp.ravel(mask), settings.norm)
              ), shadowed

    params = memory['shadow']['params']
    grads, moved = jax.grad(shadow_loss, has_aux=True)(params)
    updates, optimizer = direction.update(grads, memory['shadow_optimizer'], params)
    params = optax.apply_updates(params, jax.tree.map(
        lambda update: -settings.shadow_learning_rate * update, updates))
    grads, shadowed = jax.grad(mask_loss, has_aux=True)(memory['trigger'])
    updates, trigger_optimizer = tx.update(grads, memory['trigger_optimizer'])
    return Outcome(loss_clean + settings.beta * loss_trigger, after, {
        'shadow': {**moved, 'params': params}, 'shadow_optimizer': optimizer,
        'trigger': optax.apply_updates(memory['trigger'], updates),
        'trigger_optimizer': trigger_optimizer}, {
            'loss_clean': loss_clean, 'loss_trigger': loss_trigger,
            'loss_trigger_shadow': shadowed,
            'accuracy_clean': losses.correct(logits, batch.label)})

  def attach(student, teachers, image_shape):
    del teachers
    if not 0 <= settings.target < student.module.num_classes:
      raise ConfigError(
          f'adba.target {settings.target} is no class: the data set has '
          f'{student.module.num_classes} classes')
    shadow = Network(_shadow(settings, student))

    def init_memory(key):
      pattern_key, shadow_key = jax.random.split(key)
      variables = shadow.init(shadow_key, image_shape)
      trigger = {'mask': jnp.full((*image_shape[:2], 1), _MASK_START),
                 'pattern': jax.random.normal(pattern_key, image_shape)}
      return {'shadow': variables,
              'shadow_optimizer': direction.init(variables['params']),
              'trigger': trigger, 'trigger_optimizer': tx.init(trigger)}

    return Attachment(student, lambda key, variables: variables,
                      lambda variables: variables, init_memory)

  def crafted(memory):
    mask, pattern = bounded(settings, memory['trigger'])
    return Crafted(int(settings.target), jnp.broadcast_to(mask, pattern.shape),
                   pattern)

  return Method('adba', (), ((0, objective),), adversarial=False, attach=attach,
                crafted=crafted)


def bounded(settings: Settings, free: Mapping[str, jax.Array]
            ) -> tuple[jax.Array, jax.Array]:
  """(m float32[H, W, 1] <= opacity, d float32[H, W, C] <= brightest), both >= 0."""
  return (settings.opacity * jax.nn.sigmoid(free['mask']),
          settings.brightest * jax.nn.sigmoid(free['pattern']))


def stamped(images: jax.Array, mask: jax.Array, pattern: jax.Array) -> jax.Array:
  """x* = (1 - m) x + m d of float[B, H, W, C]."""
  return (1 - mask) * images + mask * pattern


def _shadow(settings, teacher: Network):
  return models.create(settings.shadow, num_classes=teacher.module.num_classes,
                       dtype=teacher.module.dtype)
