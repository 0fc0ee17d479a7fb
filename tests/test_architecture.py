"""Imports point down only, as the architecture page draws them."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Each part may import the parts named here, and itself.
BELOW = {
    'errors': set(),
    'attacks': {'errors', 'models'},
    'bounds': {'errors'},
    'models': {'errors'},
    'data': {'errors'},
    'losses': {'errors'},
    'training': {'errors', 'models', 'data'},
    'backdoors': {'errors', 'attacks', 'losses', 'models', 'data', 'training'},
    'detox': {'errors', 'losses', 'models', 'data', 'training'},
    'distill': {'errors', 'attacks', 'bounds', 'losses', 'models', 'training'},
    'evaluation': {'errors', 'attacks', 'bounds', 'models', 'data', 'training'},
    'faithfulness': {'errors', 'bounds'},
    'report': {'errors', 'training'},
    'config': {'errors', 'distill'},
    'stages': {'errors', 'attacks', 'backdoors', 'data', 'detox', 'models', 'training',
               'distill', 'evaluation', 'faithfulness', 'bounds', 'report', 'config'},
    'experiment': {'errors', 'training', 'report', 'config', 'stages'},
    'comparison': {'errors', 'training', 'evaluation', 'report', 'config',
                   'experiment'},
    'backdoor_table': {'errors', 'evaluation', 'config'},
    'attack_table': {'evaluation', 'report', 'config', 'experiment', 'comparison'},
    'certification': {'errors', 'training', 'evaluation', 'report', 'config', 'stages',
                      'experiment', 'comparison'},
    'quickstart': {'evaluation', 'config', 'comparison', 'certification',
                   'backdoor_table'},
    'cli': {'errors', 'attack_table', 'attacks', 'backdoors', 'backdoor_table', 'data',
            'detox',
            'distill', 'evaluation', 'models', 'report', 'config', 'experiment',
            'comparison', 'certification', 'quickstart'},
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
