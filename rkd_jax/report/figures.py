"""Pictures of a run and of a comparison, as PNG files."""

import pathlib

from matplotlib.figure import Figure
from PIL import Image

from rkd_jax import files
from rkd_jax.training import metrics as metrics_lib

# Colour-blind safe (Okabe and Ito), in the order in which they are used.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9',
           '#000000')

TRAINING = pathlib.Path('figures', 'training.png')


def draw_run(workdir: pathlib.Path) -> pathlib.Path:
  """Draws loss, validation and test accuracy to `figures/training.png`."""
  workdir = pathlib.Path(workdir)
  rows = metrics_lib.read(workdir / 'metrics.jsonl')
  results = files.read_json(workdir / 'tables' / 'evaluation.json', (
      'the command that started the run makes it again'))
  figure = Figure(figsize=(12, 3.6), layout='constrained')
  loss, validation, test = figure.subplots(1, 3)
  epochs = [row['epoch'] for row in rows]
  _lines(loss, epochs, rows, 'train/loss', 'loss')
  loss.set(title='training loss', xlabel='epoch', ylabel='loss')
  for name in sorted({key for row in rows for key in row
                      if key.startswith('validation/')}):
    if not name.endswith('score'):
      _lines(validation, epochs, rows, name,
             name.removeprefix('validation/').replace('_', ' '), 100)
  validation.set(title='validation', xlabel='epoch', ylabel='accuracy (%)',
                 ylim=(0, 100))
  validation.legend(fontsize=8)
  names = [name for name, value in results['student']['best'].items()
           if isinstance(value, dict)]
  values = [100 * results['student']['best'][name]['accuracy']
            for name in names]
  bars = test.bar(range(len(names)), values, color=COLOURS[0])
  test.bar_label(bars, fmt='%.1f', fontsize=8)
  test.set(title=f'test, best checkpoint (n = {results["examples"]})',
           ylabel='accuracy (%)', ylim=(0, 105))
  test.set_xticks(range(len(names)), names, rotation=30, ha='right',
                  rotation_mode='anchor')
  return save(figure, workdir / TRAINING)


def _lines(axes, epochs, rows, key, label, scale=1.0):
  points = [(epoch, scale * row[key]) for epoch, row in zip(epochs, rows)
            if key in row]
  if points:
    axes.plot(*zip(*points), label=label, marker='.',
              color=COLOURS[len(axes.lines) % len(COLOURS)])


def draw_comparison(content: dict, path: pathlib.Path) -> pathlib.Path:
  """Draws clean against robust accuracy of every row, with deviations.

  Args:
    content: of `tables/comparison.json`, see `rkd_jax.comparison`.
    path: the PNG file.
  """
  rows = content['rows']
  columns = [name for name in ('clean', 'pgd20', 'cw30')
             if any(name in row for row in rows.values())]
  figure = Figure(figsize=(max(7, 1.1 * len(rows)), 4.6), layout='constrained')
  axes = figure.subplots()
  width = 0.8 / len(columns)
  for i, column in enumerate(columns):
    means = [100 * row[column]['mean'] if column in row else 0
             for row in rows.values()]
    errors = [100 * (row[column]['std'] or 0) if column in row else 0
              for row in rows.values()]
    places = [j + (i - (len(columns) - 1) / 2) * width
              for j in range(len(rows))]
    bars = axes.bar(places, means, width, yerr=errors if any(errors) else None,
                    capsize=2, label=column, color=COLOURS[i])
    axes.bar_label(bars, fmt='%.0f', fontsize=7, padding=1)
  axes.set_xticks(range(len(rows)), [_wrap(name) for name in rows], fontsize=8)
  axes.set(ylabel='test accuracy (%)', ylim=(0, 108),
           title=f'{content["data"]}, {content["norm"]} eps {content["eps"]:.3g}, '
                 f'{len(content["seeds"])} seed(s)')
  axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.16), fontsize=8,
              ncols=len(columns))
  return save(figure, path)


def _wrap(name: str) -> str:
  return name.replace(' ', '\n', 2)


def is_whole(path: pathlib.Path) -> bool:
  """Whether a picture is there and undamaged, by the checksums of PNG."""
  try:
    with Image.open(path) as image:
      image.verify()
    with Image.open(path) as image:  # The data, which `verify` leaves unread.
      image.load()
  except Exception:  # Pillow raises almost anything.
    return False
  return True


def save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
  """Writes a picture, making its directory; returns the path."""
  return files.write_figure(path, figure)
