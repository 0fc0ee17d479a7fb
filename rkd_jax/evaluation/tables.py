"""Tables of results: means over seeds, as text and as Markdown.

A table is `{row: {column: cell}}`. A cell is an accuracy in [0, 1], a summary
over seeds as `aggregate` makes it, or None or absent where nothing was measured.
"""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

FIRST = ('clean', 'fgsm', 'pgd10', 'pgd20', 'pgd20_small', 'cw30', 'transfer',
         'worst', 'w_robust')
SEEDS = 'seeds'
MISSING = '-'


def aggregate(records: Iterable[Mapping[str, float | None]]) -> dict[str, dict]:
  """Summary over seeds of every column.

  Args:
    records: one {column: value} a seed; a column that a seed lacks, or has as
      None, does not count for it.

  Returns:
    {column: {'mean', 'std', 'n', 'values'}}, of plain Python numbers; `std` is the
    sample standard deviation (ddof 1), None for a single seed.
  """
  values = {}
  for record in records:
    for column, value in record.items():
      if value is not None:
        values.setdefault(column, []).append(float(value))
  return {column: {'mean': statistics.fmean(of_seeds),
                   'std': statistics.stdev(of_seeds) if len(of_seeds) > 1 else None,
                   'n': len(of_seeds), 'values': of_seeds}
          for column, of_seeds in values.items()}


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
  """The table in Markdown, in percent: '88.1 ± 0.3', without a final newline."""
  header, *body = _cells(rows)
  ruler = ['---'] + ['---:'] * (len(header) - 1)
  return '\n'.join(f'| {" | ".join(_escape(cell) for cell in line)} |'
                   for line in (header, ruler, *body))


def plain(rows: Mapping[str, Mapping[str, Any]]) -> str:
  """The table for a terminal, in percent and aligned, without a final newline."""
  header, *body = _cells(rows)
  widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
  ruler = ['-' * width for width in widths]
  return '\n'.join(_align(line, widths) for line in (header, ruler, *body))


def columns(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Every column: the standard ones in their order, others as they appear."""
  seen = {column: None for row in rows.values() for column in row}
  return ([column for column in FIRST if column in seen]
          + [column for column in seen if column not in FIRST])


def _cells(rows):
  """Lines of formatted cells, the header first."""
  names = columns(rows)
  counts = {row: _seeds(cells) for row, cells in rows.items()}
  with_seeds = any(counts.values())
  lines = [['', *names, *[SEEDS] * with_seeds]]
  for row, cells in rows.items():
    lines.append([row, *(_percent(cells.get(name)) for name in names),
                  *[counts[row] or MISSING] * with_seeds])
  return lines


def _seeds(cells):
  """'3', or '2-3' where columns differ; empty for cells that are no summaries."""
  counts = {cell['n'] for cell in cells.values() if isinstance(cell, Mapping)}
  if not counts:
    return ''
  least, most = min(counts), max(counts)
  return f'{least}' if least == most else f'{least}-{most}'


def _percent(cell):
  if cell is None:
    return MISSING
  if not isinstance(cell, Mapping):
    return f'{100 * cell:.1f}'
  if cell['std'] is None:
    return f'{100 * cell["mean"]:.1f}'
  return f'{100 * cell["mean"]:.1f} ± {100 * cell["std"]:.1f}'


def _align(line, widths):
  first, *rest = zip(line, widths, strict=True)
  cells = [f'{first[0]:<{first[1]}}', *(f'{cell:>{width}}' for cell, width in rest)]
  return '  '.join(cells)


def _escape(cell):
  return cell.replace('|', '\\|')
