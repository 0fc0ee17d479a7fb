"""Published torch state dicts by network name, and torch files as they come."""

import jax
import numpy as np
import pytest

from rkd_jax import models
from rkd_jax.errors import CheckpointError, ConfigError

torch = pytest.importorskip('torch')
from tests.models import torch_reference as reference  # noqa: E402

quick_jit = lambda fn: jax.jit(  # noqa: E731
    fn, compiler_options={'xla_backend_optimization_level': 0})

NETWORKS = {
    'resnet8': lambda: reference.ResNet((1, 1, 1), 16, 6, shortcut='pad'),
    'resnet18': lambda: reference.ResNet((2, 2, 2, 2), 64, 6),
    'wide_resnet10_1': lambda: reference.WideResNet(10, 1, 6),
    'pyramidnet8_a6': lambda: reference.PyramidNet(8, 6, 6),
}
BIG = {
    'preact_resnet18': lambda: reference.PreActResNet((2, 2, 2, 2), 64, 6),
    'mobilenet_v2': lambda: reference.MobileNetV2(6),
    'resnet50': lambda: reference.ResNet(
        (3, 4, 6, 3), 64, 6, block=reference.Bottleneck),
}


def made(networks, name):
  return reference.randomise(networks[name](), seed=4)


def agrees(name, model):
  images = np.random.default_rng(5).random((2, 8, 8, 3)).astype(np.float32)
  with torch.no_grad():
    wanted = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
  variables = models.from_torch(name, model.state_dict())
  network = models.Network(models.create(name, num_classes=6))
  found = quick_jit(network.predict)(variables, images)
  scale = float(wanted.abs().max())
  np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize('name', NETWORKS)
def test_the_converted_network_computes_the_same(name):
  agrees(name, made(NETWORKS, name))


@pytest.mark.slow
@pytest.mark.parametrize('name', BIG)
def test_the_converted_big_network_computes_the_same(name):
  agrees(name, made(BIG, name))


@pytest.mark.parametrize('name', BIG)
def test_every_array_of_a_big_network_finds_its_place(name):
  model = made(BIG, name)
  variables = models.from_torch(name, model.state_dict())
  wanted = sum(p.numel() for p in model.parameters())
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == wanted


def test_one_array_of_each_kind_is_where_it_belongs():
  model = made(NETWORKS, 'resnet18')
  state = model.state_dict()
  variables = models.from_torch('resnet18', state)
  params, stats = variables['params'], variables['batch_stats']
  weight = state['layer2.0.shortcut.0.weight'].numpy()
  np.testing.assert_array_equal(
      params['stage2_block0']['shortcut']['kernel'][0, 0], weight[:, :, 0, 0].T)
  np.testing.assert_array_equal(
      params['stage4_block1']['conv2']['kernel'][2, 0, 5, 7],
      state['layer4.1.conv2.weight'].numpy()[7, 5, 2, 0])
  np.testing.assert_array_equal(
      stats['stage3_block0']['shortcut_bn']['var'],
      state['layer3.0.shortcut.1.running_var'].numpy())
  np.testing.assert_array_equal(params['head']['bias'], state['linear.bias'].numpy())


def test_parallel_prefix_and_half_precision_are_taken():
  state = made(NETWORKS, 'wide_resnet10_1').state_dict()
  plain = models.from_torch('wide_resnet10_1', state)
  prefixed = models.from_torch(
      'wide_resnet10_1', {f'module.{k}': v for k, v in state.items()})
  jax.tree.map(np.testing.assert_array_equal, plain, prefixed)
  half = models.from_torch(
      'wide_resnet10_1', {k: v.bfloat16() for k, v in state.items()})
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), half, plain)


def test_a_file_is_read_bare_or_wrapped(tmp_path):
  state = made(NETWORKS, 'resnet8').state_dict()
  wanted = models.from_torch('resnet8', state)
  for content in (state, {'epoch': 3, 'state_dict': state}, {'net': state}):
    torch.save(content, tmp_path / 'w.pt')
    found = models.from_torch('resnet8', models.read_torch(tmp_path / 'w.pt'))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_flipped_bit_is_named(tmp_path):
  """torch reads such a file without a word: most flips give other weights."""
  state = {'a': torch.arange(600.).reshape(30, 20), 'b': torch.ones(9)}
  path, random, named = tmp_path / 'w.pt', np.random.default_rng(0), 0
  torch.save(state, path)
  content = path.read_bytes()
  for at in random.integers(0, len(content), 150):
    path.write_bytes(content[:at] + bytes([content[at] ^ 1 << int(random.integers(8))])
                     + content[at + 1:])
    try:
      found = models.read_torch(path)
    except CheckpointError as error:
      assert str(path) in str(error) and '\n' not in str(error)
      named += 1
    else:
      assert {name: value.tolist() for name, value in found.items()} == {
          name: value.tolist() for name, value in state.items()}
  assert named > 75


class Payload:
  """What unpickling would run."""

  def __reduce__(self):
    return eval, ("__import__('builtins').print('ran')",)


def test_no_code_in_a_file_is_run(tmp_path, capsys):
  torch.save({'state_dict': {'conv1.weight': Payload()}}, tmp_path / 'w.pt')
  with pytest.raises(CheckpointError, match='not a torch file of plain tensors'):
    models.read_torch(tmp_path / 'w.pt')
  assert 'ran' not in capsys.readouterr().out


def test_files_that_hold_no_state_dict(tmp_path):
  with pytest.raises(CheckpointError, match='no such file'):
    models.read_torch(tmp_path / 'absent.pt')
  (tmp_path / 'text.pt').write_text('nothing')
  with pytest.raises(CheckpointError, match='not a torch file'):
    models.read_torch(tmp_path / 'text.pt')
  torch.save([1, 2], tmp_path / 'list.pt')
  with pytest.raises(CheckpointError, match='list'):
    models.read_torch(tmp_path / 'list.pt')


def test_what_does_not_fit_is_refused():
  state = made(NETWORKS, 'resnet8').state_dict()
  with pytest.raises(CheckpointError, match='missing params/stage1_block1/conv1'):
    models.from_torch('resnet14', state)
  with pytest.raises(CheckpointError, match='unexpected .*layer9/0|layer9'):
    models.from_torch('resnet8', {**state, 'layer9x.weight': torch.ones(2)})
  with pytest.raises(CheckpointError, match='params/stem_bn/bias: 1 of 16 .* NaN'):
    bias = state['bn1.bias'].clone()
    bias[3] = float('nan')
    models.from_torch('resnet8', {**state, 'bn1.bias': bias})
  with pytest.raises(CheckpointError, match="'epoch' is a int"):
    models.from_torch('resnet8', {**state, 'epoch': 3})
  with pytest.raises(CheckpointError, match='no classifier'):
    models.from_torch('resnet8', {})
  with pytest.raises(ConfigError, match='no torch names are known'):
    models.from_torch('vgg11', state)
  with pytest.raises(ConfigError, match='unknown model'):
    models.from_torch('resnext', state)
