"""The command `rkd`: what to do and where, no mathematics."""

import argparse
import os
import pathlib
import signal
import sys

from rkd_jax import errors, files, signals, terminal

_EPILOG = """settings: --config.KEY=VALUE changes any key of `rkd config`, for example
  --config.attack.eps=0.1 --config.train.epochs=5"""

_PATHS = ('workdir', 'workdirs', 'out', 'data_dir', 'teacher_weights')


def main(argv: list[str] | None = None) -> int:
  """Runs one command.

  Returns:
    The exit code: 0 done, 1 failed, 2 bad settings, 130 interrupted (SIGINT), 143 asked
    to stop (SIGTERM), 141 nobody reads the output any more.
  """
  terminal.prepare()
  try:
    arguments, rest = _parser().parse_known_args(argv)
    with signals.listening(), terminal.short_warnings():
      for name, value in vars(arguments).items():
        if name in _PATHS and value:
          setattr(arguments, name, _expanded(name, value))
      code = arguments.run(arguments, rest) or 0
      sys.stdout.flush()
      return code
  except errors.ConfigError as error:
    _complain(error)
    return 2
  except BrokenPipeError:  # Whoever read the output has gone, as in `rkd list | head`.
    for stream in (sys.stdout, sys.stderr):
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 141
  except (errors.RkdError, OSError) as error:  # The latter names its file.
    _complain(error)
    return 1
  except KeyboardInterrupt as stop:
    print('rkd: interrupted; the same command continues', file=sys.stderr)
    return 128 + getattr(stop, 'number', signal.SIGINT)


def _complain(error: Exception) -> None:
  """Prints an error as one line."""
  print('rkd: ' + ' '.join(str(error).split()), file=sys.stderr)


class _Parser(argparse.ArgumentParser):
  """Complains about arguments in one line, as about everything else."""

  def error(self, message):
    raise errors.ConfigError(f'{message}; see `{self.prog} --help`')


def _expanded(name, value):
  what = '--' + name.replace('_', '-')
  if isinstance(value, list):
    return [str(files.local_path(one, 'DIR')) for one in value]
  return str(files.local_path(value, what))


def _parser() -> argparse.ArgumentParser:
  parser = _Parser(
      prog='rkd', description='Robust knowledge distillation in JAX.')
  commands = parser.add_subparsers(required=True, metavar='COMMAND')

  def add(name, run, text, *, config=False, workdir=None):
    command = commands.add_parser(
        name, help=text, description=text, allow_abbrev=False,
        epilog=_EPILOG if config or name == 'evaluate' else None,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    command.set_defaults(run=run)
    if config:
      command.add_argument('--config', required=True, metavar='FILE[:VARIANT]',
                           help='a config file, see configs/')
    if workdir is not None:
      command.add_argument('--workdir', required=workdir == '',
                           default=workdir or None, metavar='DIR',
                           help='directory of the run'
                           + (f' (default: {workdir})' if workdir else ''))
    return command

  add('quickstart', _quickstart, 'distil robust students of handwritten digits '
      'and attack them, in about a minute', workdir='runs/quickstart')
  add('train', _train, 'run the experiment of a config file, or continue it',
      config=True, workdir='')
  add('compare', _compare, 'train several students over several seeds and '
      'tabulate them, or continue', config=True, workdir='')
  evaluate = add('evaluate', _evaluate, 'attack the student of a finished run again, '
                 'with other evaluation settings or by AutoAttack', workdir='')
  evaluate.add_argument('--attack', default='', metavar='NAME',
                        help='autoattack, autoattack_plus or autoattack_fast, instead of '
                        'the attacks of the config; an interrupted one is continued')
  evaluate.add_argument('--examples', type=int, default=None, metavar='N',
                        help='of the test split, with --attack; 0: all (default: 1000)')
  evaluate.add_argument('--norm', default=None, metavar='NORM',
                        help='linf, l2 or l1, with --attack (default: of the run)')
  evaluate.add_argument('--eps', type=float, default=None, metavar='E',
                        help='radius in it, with --attack (default: of the run)')
  evaluate.add_argument('--students', nargs='+', default=(), metavar='NAME',
                        help='of a comparison, with --attack (default: all)')
  evaluate.add_argument('--save-images', action='store_true',
                        help='with --attack: write the adversarial images')
  certify = add('certify', _certify, 'bound how far the student of a finished run, or '
                'those of a comparison, can be from the teacher, or continue', workdir='')
  certify.add_argument('--eps', default='0.05', metavar='E[,E...]',
                       help='radii, in pixel units (default: 0.05)')
  certify.add_argument('--examples', type=int, default=100, metavar='N',
                       help='test examples that the teacher gets right (default: 100)')
  certify.add_argument('--method', default='crown',
                       help='margins, crown_ibp, crown (default), alpha_crown, best, '
                       'branch_and_bound or milp')
  certify.add_argument('--timeout', type=float, default=60.0, metavar='S',
                       help='seconds an example, for the last two (default: 60)')
  certify.add_argument('--students', nargs='+', default=(), metavar='NAME',
                       help='of a comparison (default: all)')
  certify.add_argument('--teacher', default='', metavar='NAME',
                       help="'clean' or 'robust', where the run had both")
  certify.add_argument('--teacher-weights', default='', metavar='FILE',
                       help='another teacher: a safetensors file')
  certify.add_argument('--teacher-model', default='', metavar='MODEL',
                       help='its name, see `rkd list`')
  detect = add('detect', _detect, 'look for a backdoor in the network of a finished run: '
               'is one class suspiciously easy to reach?', workdir='')
  detect.add_argument('--examples', type=int, default=1000, metavar='N',
                      help='clean training images to search with; 0: all (default: 1000)')
  show = add('show-trigger', _show_trigger, 'draw images without and with a trigger, '
             "and ten times the difference: of a poisoned run, or a trigger's name")
  show.add_argument('--workdir', default='', metavar='DIR', help='a poisoned run')
  show.add_argument('--trigger', default='', metavar='NAME',
                    help='or a fixed trigger, see `rkd list`')
  show.add_argument('--data', default='digits', metavar='NAME',
                    help='with --trigger: the images (default: digits)')
  show.add_argument('--data-dir', default='', metavar='DIR', help='where they are')
  show.add_argument('--out', default='', metavar='FILE',
                    help='the PNG (default: DIR/figures/trigger.png, trigger.png)')
  table = add('backdoor-table', _backdoor_table, 'ACC, ASR and DER of several finished '
              'comparisons of poisoned teachers, a trigger each, in one table')
  table.add_argument('workdirs', nargs='+', metavar='DIR', help='of `rkd compare`')
  table.add_argument('--out', default='', metavar='FILE', help='also as Markdown')
  config = add('config', _config, 'every setting of a config with its default, range '
               'and meaning')
  config.add_argument('names', nargs='*', metavar='NAME', help='a section, method, '
                      'defence or trigger (default: all sections but those of methods)')
  add('list', _list, 'models, methods, attacks, triggers, defences and data sets')
  return parser


def _load(arguments, rest):
  from rkd_jax import config as configuration
  return configuration.apply_flags(
      configuration.load_file(arguments.config), rest)


def _train(arguments, rest):
  from rkd_jax import experiment
  from rkd_jax.evaluation import tables
  results = experiment.run(_load(arguments, rest), arguments.workdir)
  print(tables.plain(experiment.table(results)))
  print(f'files: {arguments.workdir}')


def _compare(arguments, rest):
  from rkd_jax import comparison
  from rkd_jax.evaluation import tables
  content = comparison.run(_load(arguments, rest), arguments.workdir)
  print(tables.plain(content['rows']))
  print(f'table: {pathlib.Path(arguments.workdir) / comparison.TABLE}')


def _evaluate(arguments, rest):
  from rkd_jax import config as configuration
  from rkd_jax import experiment
  from rkd_jax.evaluation import tables
  config = configuration.read(arguments.workdir)
  wrong = [arg for arg in rest if not arg.startswith('--config.evaluation.')]
  if wrong:
    raise errors.ConfigError(
        f'{wrong[0]}: only --config.evaluation.* can change once a run exists')
  configuration.apply_flags(config, rest)
  if arguments.attack:
    return _autoattack(arguments, config)
  if (arguments.examples, arguments.norm, arguments.eps) != (None,) * 3 or (
      arguments.save_images or arguments.students):
    raise errors.ConfigError(
        '--examples, --norm, --eps, --students and --save-images go with --attack; '
        'without it say --config.evaluation.examples=N')
  results = experiment.evaluate(config, arguments.workdir)
  print(tables.plain(experiment.table(results)))


def _autoattack(arguments, config):
  from rkd_jax import attack_table
  from rkd_jax.evaluation import tables
  from rkd_jax.evaluation.ball import Ball
  examples = 1000 if arguments.examples is None else arguments.examples
  rows = attack_table.run(
      config, arguments.workdir, arguments.attack, examples=examples,
      students=arguments.students, save_images=arguments.save_images,
      norm=arguments.norm, eps=arguments.eps)
  name = arguments.attack + Ball.of(config, arguments.norm, arguments.eps).suffix
  print(tables.plain(rows))
  print(f'table: {pathlib.Path(arguments.workdir) / "tables" / name}.json')


def _certify(arguments, rest):
  from rkd_jax import certification
  from rkd_jax.evaluation import tables
  _no_more(rest)
  try:
    eps = tuple(float(text) for text in arguments.eps.split(','))
  except ValueError:
    raise errors.ConfigError(f'--eps must be numbers, such as 0.01,0.05; got '
                             f'{arguments.eps!r}') from None
  settings = certification.Settings(
      eps=eps, examples=arguments.examples, method=arguments.method,
      timeout_s=arguments.timeout)
  content = certification.run(
      arguments.workdir, settings,
      students=arguments.students, teacher=arguments.teacher,
      teacher_weights=arguments.teacher_weights, teacher_model=arguments.teacher_model)
  print(tables.plain(content['rows']))
  workdir = pathlib.Path(arguments.workdir)
  print(f'table:  {workdir / certification.TABLE}')
  print(f'figure: {workdir / "figures" / "faithfulness.png"}')


def _detect(arguments, rest):
  from rkd_jax import config as configuration
  from rkd_jax import experiment
  _no_more(rest)
  found = experiment.detect(configuration.read(arguments.workdir),
                            arguments.workdir, examples=arguments.examples)
  print('class  patch size  success   reach  anomaly')
  for name, of in found['classes'].items():
    print(f'{name:>5}  {of["size"]:>10.1f}  {of["success"]:>7.1%}  '
          f'{of["reach"]:>6.2f}  {of["anomaly"]:>7.2f}')
  print(f'suspects (anomaly above {found["threshold"]}, or a patch of less than '
        f'{found["small_patch"]:.1%} of the pixels): '
        f'{", ".join(map(str, found["suspects"])) or "none"}')
  print(f'table: {pathlib.Path(arguments.workdir) / "tables" / "detect.json"}')


def _show_trigger(arguments, rest):
  from rkd_jax import backdoors, data
  from rkd_jax import config as configuration
  from rkd_jax.backdoors import files as trigger_files
  from rkd_jax.report import triggers
  _no_more(rest)
  if bool(arguments.workdir) == bool(arguments.trigger):
    raise errors.ConfigError('show-trigger needs one of --workdir (a poisoned run) and '
                             '--trigger (a name)')
  path = pathlib.Path(arguments.out or 'trigger.png')
  if path.suffix != '.png':
    raise errors.ConfigError(f'--out {arguments.out!r}: wanted a file ending in .png')
  if arguments.workdir:
    workdir = pathlib.Path(arguments.workdir)
    config = configuration.read(workdir)
    if not (workdir / 'backdoor').is_dir():
      raise errors.ConfigError(
          f'{workdir} is not poisoned (backdoor/ is missing); --workdir is a run with '
          'config.backdoor.trigger, in a comparison seedN/teachers/NAME')
    trigger, _ = trigger_files.load(workdir / 'backdoor')
    dataset = data.load(config.data.name, data_dir=config.data.data_dir or None)
    if not arguments.out:
      path = workdir / 'figures' / 'trigger.png'
  else:
    if arguments.trigger not in backdoors.FIXED:
      raise errors.unknown_name('fixed trigger', arguments.trigger, backdoors.FIXED)
    dataset = data.load(arguments.data, data_dir=arguments.data_dir or None)
    trigger = backdoors.FIXED[arguments.trigger](dataset.image_shape)
  clean = dataset.test.image[:6]
  print(f'picture: {triggers.draw(clean, trigger.apply(clean), trigger.name, path)}')


def _backdoor_table(arguments, rest):
  from rkd_jax import backdoor_table
  from rkd_jax.evaluation import tables
  _no_more(rest)
  rows = backdoor_table.table(arguments.workdirs)
  print(tables.plain(rows))
  if arguments.out:
    files.write_text(arguments.out, tables.markdown(rows) + '\n')


def _quickstart(arguments, rest):
  from rkd_jax import quickstart
  _no_more(rest)
  quickstart.run(arguments.workdir)


def _config(arguments, rest):
  from rkd_jax import listing
  _no_more(rest)
  for line in listing.lines(arguments.names):
    print(line)


def _list(arguments, rest):
  del arguments
  _no_more(rest)
  from rkd_jax import attacks, backdoors, data, detox, distill, models
  for title, entries in (('models', models.describe()),
                         ('methods', distill.describe()),
                         ('attacks', attacks.describe()),
                         ('triggers', backdoors.describe()),
                         ('defences', detox.describe()),
                         ('data sets', data.describe())):
    print(f'{title}:')
    for name, text in dict(entries).items():
      print(f'  {name:24} {text}')


def _no_more(rest):
  if rest:
    raise errors.ConfigError(f'unknown argument {rest[0]!r}')
