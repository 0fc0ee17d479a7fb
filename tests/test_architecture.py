"""Imports point down only, as the architecture page draws them."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Each part may import the parts named here, and itself.
BELOW = {
    'errors': set(),
    'files': {'errors'},
    'untrusted': set(),
    'locks': {'errors', 'files'},
    'signals': set(),
    'terminal': set(),
    'settings': {'errors'},
    'sections': {'errors', 'settings'},
    'config_file': {'errors'},
    'attacks': {'errors', 'models'},
    'bounds': {'errors'},
    'models': {'files', 'errors', 'untrusted'},
    'data': {'files', 'errors', 'untrusted'},
    'losses': {'errors'},
    'training': {'files', 'signals', 'errors', 'settings', 'sections', 'models', 'data'},
    'backdoors': {'files', 'errors', 'settings', 'sections', 'attacks', 'losses',
                  'models', 'data', 'training'},
    'detox': {'errors', 'settings', 'losses', 'models', 'data', 'training'},
    'distill': {'errors', 'settings', 'sections', 'attacks', 'bounds', 'losses',
                'models', 'training'},
    'evaluation': {'errors', 'attacks', 'bounds', 'models', 'data', 'training'},
    'faithfulness': {'errors', 'bounds'},
    'report': {'files', 'errors', 'training'},
    'config': {'files', 'errors', 'settings', 'sections', 'config_file', 'distill'},
    'stages': {'files', 'signals', 'errors', 'settings', 'sections', 'attacks',
               'backdoors', 'data', 'detox', 'models', 'training', 'distill',
               'evaluation', 'faithfulness', 'bounds', 'report', 'config'},
    'experiment': {'files', 'locks', 'errors', 'training', 'report', 'config', 'stages'},
    'comparison': {'files', 'locks', 'errors', 'settings', 'training', 'evaluation',
                   'report', 'config', 'stages',
                   'experiment'},
    'backdoor_table': {'files', 'errors', 'evaluation', 'config'},
    'attack_table': {'stages', 'files', 'locks', 'evaluation', 'report', 'config',
                     'experiment',
                     'comparison'},
    'certification': {'files', 'locks', 'errors', 'settings', 'training', 'evaluation',
                      'report', 'config', 'stages', 'experiment', 'comparison'},
    'listing': {'errors', 'settings', 'sections', 'distill', 'detox', 'backdoors'},
    'quickstart': {'files', 'evaluation', 'config', 'comparison', 'certification',
                   'backdoor_table'},
    'cli': {'files', 'signals', 'terminal', 'errors', 'attack_table', 'attacks',
            'backdoors',
            'backdoor_table',
            'data', 'detox',
            'distill', 'evaluation', 'models', 'report', 'config', 'experiment',
            'comparison', 'certification', 'listing', 'quickstart'},
    '__main__': {'cli'},
    '__init__': set(),  # Looks names up lazily.
}

FILES = sorted((ROOT / 'rkd_jax').rglob('*.py'))


def part_of(path):
  relative = path.relative_to(ROOT / 'rkd_jax')
  return relative.parts[0].removesuffix('.py')


def imported(tree):
  """(module names, all dotted) that a syntax tree imports, at any depth."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


@pytest.mark.parametrize(
    'path', FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_imports_point_down(path):
  part = part_of(path)
  assert part in BELOW, f'{part} has no place in the architecture'
  for name in imported(ast.parse(path.read_text())):
    if name.split('.')[0] != 'rkd_jax' or name == 'rkd_jax':
      continue
    target = name.split('.')[1]
    assert target == part or target in BELOW[part], f'{part} imports {name}'


def test_the_order_has_no_cycle():
  done = set()
  while len(done) < len(BELOW):
    ready = {part for part in set(BELOW) - done if BELOW[part] <= done}
    assert ready, f'cycle among {set(BELOW) - done}'
    done |= ready


def test_configs_import_ml_collections_alone():
  for path in (ROOT / 'configs').glob('*.py'):
    for name in imported(ast.parse(path.read_text())):
      assert name.split('.')[0] == 'ml_collections', f'{path.name}: {name}'


def test_jit_appears_in_one_place():
  for path in FILES:
    # conv.py tries an option out; bounds are a library of their own.
    if path.name in ('parallel.py', 'conv.py', 'compiled.py'):
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Attribute) and node.attr in ('jit', 'pmap'):
        raise AssertionError(f'{path}:{node.lineno} compiles; use parallel.py')


def written_around_files(tree):
  """(line, name) of calls in a syntax tree that write a file by themselves."""
  writers = {'write_text', 'write_bytes', 'save_file', 'savefig', 'savez',
             'savez_compressed', 'savetxt', 'tofile', 'imsave', 'dump', 'touch',
             'NamedTemporaryFile', 'mkstemp'}
  for node in ast.walk(tree):
    if not isinstance(node, ast.Call):
      continue
    called = ast.unparse(node.func)
    if called.startswith('files.') or 'os.devnull' in ast.unparse(node):
      continue
    name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
    if name in writers or called in ('np.save', 'os.replace', 'os.open'):
      yield node.lineno, name
    if name in ('open', 'fdopen'):
      values = [*node.args, *(word.value for word in node.keywords)]
      if any(isinstance(value, ast.Constant) and isinstance(value.value, str)
             and set(value.value) <= set('rwxabt+') and set(value.value) & set('wxa+')
             for value in values):
        yield node.lineno, name


@pytest.mark.parametrize('text, found', [
    ("path.open('w')", True), ("open(p, mode='ab')", True), ("open('f', 'r+b')", True),
    ("path.write_text('')", True), ('np.save(p, a)', True), ("path.open('rb')", False),
    ('weights.save(p, a)', False), ('open(p)', False), ('os.replace(a, b)', True)])
def test_the_scan_for_writers_sees_them(text, found):
  assert bool(list(written_around_files(ast.parse(text)))) == found


def test_every_file_is_written_in_one_place():
  for path in FILES:
    if path == ROOT / 'rkd_jax' / 'files.py':
      continue
    for line, name in written_around_files(ast.parse(path.read_text())):
      raise AssertionError(f'{path}:{line} calls {name}; write through rkd_jax.files')


def test_imports_start_no_backend():
  """Else `jax.distributed.initialize` comes too late, and a fork hangs."""
  names = ['.'.join(path.relative_to(ROOT).with_suffix('').parts) for path in FILES
           if path.stem not in ('__init__', '__main__')]
  script = (f'import importlib; [importlib.import_module(n) for n in {names}]; '
            'from jax._src import xla_bridge; print(list(xla_bridge._backends))')
  done = subprocess.run([sys.executable, '-c', script], cwd=ROOT, text=True,
                        capture_output=True, check=True)
  assert done.stdout.strip() == '[]'
