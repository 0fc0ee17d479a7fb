"""`rkd show-trigger`: what the picture shows, of a name and of a poisoned run."""

import numpy as np
import pytest
from matplotlib import image as png

from rkd_jax import backdoors, cli, data, files
from rkd_jax import config as configuration
from rkd_jax.backdoors import files as trigger_files
from rkd_jax.report import triggers


def share(path, level):
  """Of the picture's pixels, those of this grey level, which the colour map rounds."""
  pixels = 255 * png.imread(path)[..., :3]
  return np.mean(np.all(np.abs(pixels - level) < 1.5, axis=-1))


def test_rows_are_clean_triggered_and_the_enlarged_difference(tmp_path):
  full = lambda level: np.full((3, 5, 5, 1), level, np.uint8)
  path = triggers.draw(full(40), full(45), 'x', tmp_path / 'new' / 'x.png')
  # Of equal area: 40, 45 and 128 + 10 x 5 around grey.
  areas = [share(path, level) for level in (40, 45, 178)]
  assert areas[0] > 0.1
  np.testing.assert_allclose(areas, areas[0], rtol=0.05)
  # A difference of more than the scale holds is cut.
  path = triggers.draw(full(40), full(10), 'x', tmp_path / 'x.png')
  assert abs(share(path, 0) / areas[0] - 1) < 0.1  # And the letters.


@pytest.mark.parametrize('name', backdoors.FIXED)
def test_each_fixed_trigger_by_its_name(name, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert cli.main(['show-trigger', '--trigger', name]) == 0
  assert capsys.readouterr().out == 'picture: trigger.png\n'
  # Neither the grey of no change nor the paper: the upper two rows are images.
  assert 1 - share('trigger.png', 128) - share('trigger.png', 255) > 0.3


def test_a_poisoned_run(tmp_path, capsys):
  files.write_json(tmp_path / 'config.json', configuration.to_dict(
      configuration.resolve({'data': {'name': 'digits'}})))
  assert cli.main(['show-trigger', '--workdir', str(tmp_path)]) == 2
  assert 'is not poisoned (backdoor/ is missing)' in capsys.readouterr().err
  dataset = data.load('digits')
  trigger = backdoors.badnets(dataset.image_shape, 0, size=3, margin=1)
  trigger_files.save(tmp_path / 'backdoor', trigger)
  assert cli.main(['show-trigger', '--workdir', str(tmp_path)]) == 0
  drawn = tmp_path / 'figures' / 'trigger.png'
  assert capsys.readouterr().out == f'picture: {drawn}\n'
  images = dataset.test.image[:6]
  wanted = triggers.draw(images, trigger.apply(images), 'badnets', tmp_path / 'b.png')
  np.testing.assert_array_equal(png.imread(drawn), png.imread(wanted))
  (tmp_path / 'backdoor' / 'trigger.json').write_text('{')
  assert cli.main(['show-trigger', '--workdir', str(tmp_path)]) == 1
  assert 'trigger.json: damaged' in capsys.readouterr().err


@pytest.mark.parametrize('arguments, code, message', [
    ([], 2, 'needs one of --workdir (a poisoned run) and --trigger'),
    (['--workdir', 'a', '--trigger', 'sig'], 2, 'needs one of'),
    (['--trigger', 'bad_nets'], 2, "unknown fixed trigger 'bad_nets'"),
    (['--trigger', 'sig', '--out', 'a.jpeg'], 2,
     "'a.jpeg': wanted a file ending in .png"),
    (['--trigger', 'sig', '--out', 'file/a.png'], 1, 'file'),
    (['--workdir', 'nothing'], 2, 'nothing holds no run'),
])
def test_errors(arguments, code, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').write_text('')
  assert cli.main(['show-trigger', *arguments]) == code
  told = capsys.readouterr().err
  assert message in told and told.count('\n') == 1
  assert [path.name for path in tmp_path.iterdir()] == ['file']
