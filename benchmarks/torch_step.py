"""The PyTorch side of the benchmark: RSLAD with PGD as its public code does it."""

import torch
import torch_networks
from torch.nn import functional as F

EPS, STEP_SIZE, START_SCALE = 8 / 255, 2 / 255, 0.001
WEIGHT_ADV = 5 / 6


class Trainer:
  """A student, its robust teacher (same network) and an optimiser.

  Attributes:
    student: the network that is trained.
  """

  def __init__(self, name, image, label, options):
    self.options = options
    self.device = torch.device('cuda' if options.device == 'gpu' else 'cpu')
    layout = (torch.channels_last if options.channels_last
              else torch.contiguous_format)
    self.student, teacher = (
        torch_networks.NETWORKS[name]().to(self.device, memory_format=layout)
        for _ in range(2))
    self.teacher = teacher.eval().requires_grad_(False)
    self.predict, self.teach = self.student, self.teacher
    if options.torch_compile:
      self.predict, self.teach = torch.compile(self.student), torch.compile(teacher)
    self.optimizer = torch.optim.SGD(
        self.student.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    nchw = torch.tensor(image).permute(0, 3, 1, 2)
    self.image = nchw.contiguous(memory_format=layout).to(self.device)
    self.label = torch.tensor(label).to(self.device)

  def logits(self, network, image):
    """float32 logits; the network computes in the precision that was asked for."""
    with torch.autocast(self.device.type, torch.bfloat16,
                        enabled=self.options.dtype == 'bfloat16'):
      out = network(image)
    return out.float()

  def attack(self, image, teacher_probs):
    """PGD on KL(teacher(x) || student(x')), the student in evaluation mode."""
    self.student.eval()
    adv = (image + START_SCALE * torch.randn_like(image)).clamp(0, 1)
    for _ in range(self.options.steps):
      adv.requires_grad_()
      log_probs = F.log_softmax(self.logits(self.predict, adv), 1)
      loss = F.kl_div(log_probs, teacher_probs, reduction='sum')
      gradient, = torch.autograd.grad(loss, adv)
      adv = adv.detach() + STEP_SIZE * gradient.sign()
      adv = torch.min(torch.max(adv, image - EPS), image + EPS).clamp(0, 1)
    self.student.train()
    return adv

  def step(self, index):
    """One training step on the examples `index`; the loss stays on the device."""
    image = self.image[index].float() / 255
    with torch.no_grad():
      teacher_probs = F.softmax(self.logits(self.teach, image), 1)
    adv = self.attack(image, teacher_probs)
    loss = 0
    for weight, view in ((WEIGHT_ADV, adv), (1 - WEIGHT_ADV, image)):
      log_probs = F.log_softmax(self.logits(self.predict, view), 1)
      loss = loss + weight * F.kl_div(
          log_probs, teacher_probs, reduction='none').mean()
    self.optimizer.zero_grad()
    loss.backward()
    self.optimizer.step()
    return loss.detach()

  def run(self, order):
    """The steps of order [K, B]; returns when they are done: losses [K]."""
    losses = [self.step(index) for index in
              torch.tensor(order, dtype=torch.long, device=self.device)]
    return torch.stack(losses).cpu().numpy()
