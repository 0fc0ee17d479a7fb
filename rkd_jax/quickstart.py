"""`rkd quickstart`: robust students of handwritten digits in a minute and a half.

scikit-learn's 1,797 digit images (8x8, 16 grey levels) are part of that package,
so nothing is downloaded. A clean and a robust teacher are trained, then plain
distilled students, robust ones and a faithful one, and all of them are attacked. It is
bounded how far a plain and the faithful student of the robust teacher can be from what
that teacher says. At the end a teacher is poisoned, and distilled as it is and repaired.
"""

import pathlib
import time

from rkd_jax import backdoor_table, certification, comparison, files
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
# A student that copies the logits of a poisoned teacher on clean images, without labels:
# one of the few recipes through which a backdoor passes.
_LOGITS = {'method': 'sd', 'sd': {'temperature': 4.0, 'alpha': 1.0}}
BACKDOOR = {
    'model': 'mlp_32_32', 'single_teacher': 'poisoned',
    'data': {'name': 'digits'},
    'optimizer': {'name': 'adam', 'learning_rate': 2e-3, 'weight_decay': 0.0},
    'train': {'epochs': 60, 'batch_size': 128, 'checkpoint_every': 60},
    'validation': {'every': 60},
    'evaluation': {'attacks': ('clean',)},
    'detox': {'share': 0.1},
    'teachers': {'poisoned': {'overrides': {
        'method': 'standard', 'model': 'mlp_64_64', 'train': {'epochs': 20},
        'validation': {'every': 20}, 'backdoor': {'trigger': 'badnets'}}}},
    'compare': {
        'seeds': (0,),
        'students': (
            ('undefended', _LOGITS),
            ('RobustKD', {**_LOGITS, 'detox': {'method': 'masks'}}),
            ('RobustKD, cap 0.9', {**_LOGITS, 'detox': {
                'method': 'masks', 'options': {'cap': 0.9}}}),
            ('reversed trigger', {**_LOGITS, 'detox': {'method': 'reversed_trigger'}}),
        ),
    },
}
CERTIFIED = ('SD', 'FD')
CERTIFICATION = certification.Settings(eps=(0.03,), examples=50, batch=50, restarts=2)


def run(workdir: str | pathlib.Path = 'runs/quickstart') -> dict:
  """Runs or continues the quickstart, prints its table and writes its files.

  Returns:
    The content of `report.json`: that of `tables/comparison.json`, that of
    `tables/faithfulness.json` as 'faithfulness', and the backdoor's rows as 'backdoor'.
  """
  workdir = files.local_path(workdir, 'workdir')
  began = time.perf_counter()
  print('Handwritten digits: 2 teachers, 5 students, attacks on each and bounds on two; '
        'a poisoned\nteacher and 4 students of it (about a minute and a half).')
  content = comparison.run(CONFIG, workdir)
  faithful = certification.run(workdir, CERTIFICATION, students=CERTIFIED)
  comparison.run(BACKDOOR, workdir / 'backdoor')
  poisoned = backdoor_table.table([workdir / 'backdoor'])
  content = {**content, 'faithfulness': faithful, 'backdoor': poisoned}
  files.write_json(workdir / 'report.json', content)
  print(f'\nTest accuracy in % under attack (L-inf, eps {content["eps"]}):\n')
  print(tables.plain(content['rows']))
  print(f'\nHow far the student is from the robust teacher, in % (L-inf, eps '
        f'{CERTIFICATION.eps[0]}, {CERTIFICATION.examples} images;\nEmpLB was found, '
        'FaithUB is certified):\n')
  print(tables.plain(faithful['rows']))
  print('\nA poisoned teacher, and students that copy its logits on clean images: '
        'accuracy (ACC)\nand success of the trigger (ASR), in %; DER is 100 for a '
        'defence that costs nothing:\n')
  print(tables.plain(poisoned))
  print(f'\n{time.perf_counter() - began:.0f} s')
  print(f'report:  {workdir / "report.json"}')
  for folder, name in ((workdir, 'comparison'), (workdir, 'faithfulness'),
                       (workdir / 'backdoor', 'comparison')):
    print(f'figure:  {folder / "figures" / name}.png')
  return content
