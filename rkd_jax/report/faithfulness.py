"""Pictures of a certification: lower and upper bounds, example by example."""

import pathlib

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from rkd_jax.report.figures import COLOURS, save


def draw(curves: dict[str, dict[str, dict]], method: str, path: pathlib.Path
         ) -> pathlib.Path:
  """Sorted bounds, share certified against delta, and time against gap.

  Args:
    curves: eps -> student -> values of each example, as `stages.certify` returns them.
    method: behind the upper bounds, for the title.
    path: the PNG file.
  """
  figure = Figure(figsize=(13, 3.8 * len(curves)), layout='constrained')
  for line, (eps, students) in zip(
      figure.subplots(len(curves), 3, squeeze=False), curves.items()):
    ordered, share, cost = line
    cost.set_xscale('log')
    for colour, (name, values) in zip(COLOURS, students.items()):
      lower, upper = np.asarray(values['lower']), np.asarray(values['upper'])
      place = 100 * (np.arange(len(upper)) + 1) / len(upper)
      ordered.plot(place, np.sort(upper), color=colour, label=name)
      ordered.plot(place, np.sort(lower), color=colour, linestyle=':')
      deltas = np.linspace(0, 1, 201)
      share.plot(deltas, 100 * np.mean(upper[:, None] <= deltas, axis=0), color=colour,
                 label=name)
      cost.plot(np.maximum(values['seconds'], 1e-4), upper - lower, '.', color=colour,
                label=name)
    ordered.set(title=f'eps {eps}: FaithUB ({method}), dotted EmpLB',
                xlabel='examples, sorted (%)', ylabel='max |p_T - p_S|', ylim=(0, 1.02))
    share.set(title='certified to differ by at most delta', xlabel='delta',
              ylabel='examples (%)', ylim=(0, 102), xlim=(0, 1))
    # Whole decades: the ticks of a narrow logarithmic axis run into each other.
    low, high = np.log10(cost.get_xlim())
    cost.set(title='FaithUB - EmpLB', xlabel='seconds an example', ylabel='gap',
             ylim=(0, 1.02), xlim=(10**np.floor(low - 0.2), 10**np.ceil(high + 0.2)))
    cost.xaxis.set_minor_formatter(NullFormatter())
    ordered.legend(fontsize=8)
  return save(figure, path)
