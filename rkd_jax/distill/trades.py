"""TRADES (Zhang et al. 2019, arXiv:1901.08573)."""

from rkd_jax import attacks, losses
from rkd_jax.distill import settings as checks
from rkd_jax.distill.adversary import NEARBY, make_adversary
from rkd_jax.distill.method import Method, Outcome

SUMMARY = 'TRADES: clean cross-entropy + beta KL(clean || adversarial prediction)'

DEFAULTS = {'beta': 6.0}


def make(settings, *, threat, epochs) -> Method:
  """CE(S(x), y) + beta KL(S(x) || S(x')), gradients through both (eq. 5).

  x' maximises KL(S(x) || S(x')) from x + 0.001 N(0, 1). The KL is summed over
  the classes. The student forwards run in training mode, first x', then x.

  Args:
    settings: `beta` >= 0, 1/lambda in the paper.
    threat: see `adversary.make_adversary`.
    epochs: epochs of the whole training.

  Raises:
    ConfigError: an invalid setting or threat.
  """
  checks.non_negative(settings, 'beta')
  beta = settings['beta']
  adversary = make_adversary(threat, epochs=epochs, start=NEARBY)

  def objective(student, teachers, memory, batch):
    del teachers
    reference = student.frozen().predict(batch.image)
    image_adv = adversary(student, batch, attacks.kl_to(reference))
    logits_adv, student = student.train(image_adv)
    logits, student = student.train(batch.image)
    loss_clean = losses.cross_entropy(logits, batch.label)
    loss_adv = losses.kl(logits_adv, logits, teacher_gradient=True)
    return Outcome(loss_clean + beta * loss_adv, student, memory, {
        'loss_clean': loss_clean,
        'loss_adv': loss_adv,
        'accuracy_clean': losses.correct(logits, batch.label),
        'accuracy_adv': losses.correct(logits_adv, batch.label)})

  return Method('trades', (), ((0, objective),))
