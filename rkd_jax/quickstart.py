"""`rkd quickstart`: robust students of handwritten digits in a minute and a half.

scikit-learn's 1,797 digit images (8x8, 16 grey levels) are part of that package,
so nothing is downloaded. A clean and a robust teacher are trained, then plain
distilled students, robust ones and a faithful one, and all of them are attacked. At the
end it is bounded how far a plain and the faithful student of the robust teacher can be
from what that teacher says.
"""

import pathlib
import time

from rkd_jax import certification, comparison
from rkd_jax.config import write_json
from rkd_jax.evaluation import tables

_WIDE, _SMALL = 'cnn_16_32', 'cnn_8_16'

CONFIG = {
    'model': _SMALL,
    'data': {'name': 'digits'},
    'attack': {'eps': 0.1, 'step_size': 0.025, 'steps': 10, 'eps_warmup': 0.2},
    'optimizer': {'learning_rate': 0.1},
    'train': {'epochs': 40, 'batch_size': 128, 'checkpoint_every': 20},
    'validation': {'every': 10},
    'evaluation': {'attacks': ('clean', 'fgsm', 'pgd20', 'cw30', 'transfer')},
    'teachers': {
        'clean': {'overrides': {
            'method': 'standard', 'model': _WIDE}},
        'robust': {'overrides': {
            'method': 'trades', 'model': _WIDE}},
    },
    'compare': {
        'seeds': (0,),
        'students': (
            ('plain KD', {'method': 'sd', 'single_teacher': 'clean',
                          'optimizer': {'learning_rate': 0.02}}),
            ('RSLAD', {'method': 'rslad', 'rslad': {'kl_scale': 10.0}}),
            ('CIARD', {'method': 'ciard', 'ciard': {'kl_scale': 10.0}}),
            ('SD', {'method': 'sd', 'optimizer': {'learning_rate': 0.02}}),
            ('FD', {'method': 'fd'}),
        ),
    },
}
CERTIFIED = ('SD', 'FD')
CERTIFICATION = certification.Settings(eps=(0.03,), examples=50, batch=50, restarts=2)


def run(workdir: str | pathlib.Path = 'runs/quickstart') -> dict:
  """Runs or continues the quickstart, prints its table and writes its files.

  Returns:
    The content of `report.json`: that of `tables/comparison.json`, and that of
    `tables/faithfulness.json` as 'faithfulness'.
  """
  workdir = pathlib.Path(workdir)
  began = time.perf_counter()
  print('Handwritten digits: 2 teachers, 5 students, then attacks on each and bounds on '
        'two (about a minute and a half).')
  content = comparison.run(CONFIG, workdir)
  faithful = certification.run(workdir, CERTIFICATION, students=CERTIFIED)
  content = {**content, 'faithfulness': faithful}
  write_json(workdir / 'report.json', content)
  print(f'\nTest accuracy in % under attack (L-inf, eps {content["eps"]}):\n')
  print(tables.plain(content['rows']))
  print(f'\nHow far the student is from the robust teacher, in % (L-inf, eps '
        f'{CERTIFICATION.eps[0]}, {CERTIFICATION.examples} images;\nEmpLB was found, '
        'FaithUB is certified):\n')
  print(tables.plain(faithful['rows']))
  print(f'\n{time.perf_counter() - began:.0f} s')
  print(f'report:  {workdir / "report.json"}')
  for name in ('comparison', 'faithfulness'):
    print(f'figure:  {workdir / "figures" / name}.png')
  return content
