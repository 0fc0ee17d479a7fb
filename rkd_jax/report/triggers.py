"""A picture of a trigger: images without it, with it, and what it changes."""

import pathlib

import numpy as np
from matplotlib.figure import Figure

from rkd_jax.report.figures import save

FACTOR = 10  # How much the difference is enlarged.


def draw(clean, triggered, name: str, path: pathlib.Path) -> pathlib.Path:
  """Rows clean / triggered / difference x 10 around grey; returns the path.

  Args:
    clean: uint8[B, H, W, C], C 1 or 3.
    triggered: the same with the trigger.
    name: for the title.
    path: the PNG file.
  """
  clean, triggered = (np.asarray(images, np.int32) for images in (clean, triggered))
  difference = np.clip(128 + FACTOR * (triggered - clean), 0, 255)
  figure = Figure(figsize=(1.5 * len(clean) + 1, 5), layout='constrained')
  axes = figure.subplots(3, len(clean), squeeze=False)
  rows = (('clean', clean), ('triggered', triggered),
          (f'difference x {FACTOR}', difference))
  for line, (label, images) in zip(axes, rows):
    line[0].set_ylabel(label)
    for place, image in zip(line, images):
      place.imshow(image if image.shape[-1] == 3 else image[..., 0],
                   cmap='gray', vmin=0, vmax=255)
      place.set(xticks=(), yticks=())
  figure.suptitle(f'trigger {name}')
  return save(figure, path)
