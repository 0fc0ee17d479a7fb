"""TFDS folders from elsewhere: nothing that they name is imported or believed."""

import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from rkd_jax import data
from rkd_jax.data import prepared
from rkd_jax.errors import DataError


def shard(root, split, number):
  return folder_of(root) / f'cifar10-{split}.array_record-{number:05d}-of-00002'


def folder_of(root):
  return root / 'cifar10' / '3.0.2'


def edited(name, change):
  """Applies `change` to the JSON of a file."""
  def damage(root):
    file = folder_of(root) / name
    content = json.loads(file.read_text())
    file.write_text(json.dumps(change(content) or content))
  return damage


def written(name, content):
  def damage(root):
    (folder_of(root) / name).write_bytes(content)
  return damage


def replaced(name, make):
  def damage(root):
    path = folder_of(root) / name
    path.unlink()
    make(path)
  return damage


def put(content, path, value):
  """Sets content[path[0]][path[1]]... to a value, which `...` removes."""
  for key in path[:-1]:
    content = content[key]
  if value is ...:
    del content[path[-1]]
  else:
    content[path[-1]] = value


def info(*path, value):
  return edited('dataset_info.json', lambda content: put(content, path, value))


def features(*path, value):
  return edited('features.json', lambda content: put(content, path, value))


PARTS = 'featuresDict', 'features'
DIMENSIONS = *PARTS, 'image', 'image', 'shape', 'dimensions'
EVIL = 'made_for_this_test.sub.Feature'
SHARD = 'cifar10-train.array_record-00001-of-00002'
BAD = {
    # What TFDS would import: at the top, nested, in every spelling, within a text.
    'class at the top': (features('pythonClassName', value=EVIL), 'not part of Tensor'),
    'class of the image': (
        features(*PARTS, 'image', 'pythonClassName', value=EVIL), EVIL),
    'class of the label': (
        features(*PARTS, 'label', 'pythonClassName', value=EVIL), EVIL),
    'class of another feature': (
        features(*PARTS, 'id', value={'pythonClassName': EVIL, 'text': {}}), EVIL),
    'class within a sequence': (
        features(*PARTS, 'id', value={
            'pythonClassName': 'tensorflow_datasets.core.features.sequence_feature.'
                               'Sequence',
            'sequence': {'feature': {'pythonClassName': EVIL, 'text': {}}}}), EVIL),
    'class in the other spelling': (
        features(*PARTS, 'id', value={'python_class_name': EVIL}), EVIL),
    'class of the old form': (
        edited('features.json', lambda content: {'type': EVIL, 'content': '{}'}), EVIL),
    'class within a text': (
        features(*PARTS, 'id', value={'jsonFeature': {'json': json.dumps(
            {'a': [{'type': EVIL, 'content': {}}]})}}), EVIL),
    'class within a text in a text': (
        features(*PARTS, 'id', value={'jsonFeature': {'json': json.dumps(
            {'json': json.dumps({'type': EVIL})})}}), EVIL),
    'class that begins alike': (
        features('pythonClassName', value='tensorflow_datasets_evil.F'), 'not part'),
    'class with a path in it': (
        features('pythonClassName', value='tensorflow_datasets.../../evil'), 'not part'),
    'class that is no text': (features('pythonClassName', value=5), 'not part'),
    'class of TFDS that is another': (
        features(*PARTS, 'image', 'pythonClassName',
                 value='tensorflow_datasets.core.features.text_feature.Text'), 'wanted'),
    'no class': (features(*PARTS, 'image', 'pythonClassName', value=...), 'KeyError'),
    'features of text': (written('features.json', b'hello'), 'features.json cannot be'),
    'features empty': (written('features.json', b''), 'it is empty'),
    'features as a page': (written('features.json', b'<html>'), 'it is an HTML page'),
    'features as a pointer': (written('features.json', b'version https://git-lfs.github'),
                              'Git LFS'),
    'features in Latin-1': (written('features.json', b'{"a": "\xe9"}'), 'utf-8'),
    'features as a list': (written('features.json', b'[1]'), 'a list, wanted an object'),
    'features very deep': (written('features.json', b'[' * 10**6), 'features.json'),
    'features very long': (written('features.json', b' ' * (2**24 + 1)), '16,777,217'),
    'features of long numbers': (written('features.json', b'{"a": ' + b'9' * 9999 + b'}'),
                                 'features.json cannot'),
    'features as a pipe': (replaced('features.json', os.mkfifo), 'is a named pipe'),
    'features in a circle': (replaced('features.json', lambda p: p.symlink_to(p)),
                             'in a circle'),
    'no features': (features(*PARTS, value=...), "KeyError('features')"),
    'no image': (features(*PARTS, 'image', value=...), "KeyError('image')"),
    'no label': (features(*PARTS, 'label', value=...), "KeyError('label')"),
    'an image that is text': (features(*PARTS, 'image', value='x'), 'features.json'),
    'a shape of two': (features(*DIMENSIONS, value=['6', '5']), 'shape (6, 5)'),
    'a shape of unknown size': (features(*DIMENSIONS, value=['-1', '5', '3']), '(-1, 5'),
    'a shape of words': (features(*DIMENSIONS, value=['a', '5', '3']), "'a'"),
    'two channels': (features(*DIMENSIONS, value=['6', '5', '2']), '(6, 5, 2), wanted'),
    'one channel': (features(*DIMENSIONS, value=['6', '5', '1']),
                    'is of shape (6, 5, 3), features.json says (6, 5, 1)'),
    'another height': (features(*DIMENSIONS, value=['1', '5', '3']),
                       'is of shape (6, 5, 3), features.json says (1, 5, 3)'),
    'pixels beyond memory': (features(*DIMENSIONS, value=['9999999', '9999999', '3']),
                             'this machine has'),
    'pixels beyond numbers': (features(*DIMENSIONS, value=['9' * 40, '5', '3']), 'GB'),
    'images of 16 bits': (features(*PARTS, 'image', 'image', 'dtype', value='uint16'),
                          'uint16, wanted uint8'),
    'other numbers of classes': (features(*PARTS, 'label', 'classLabel', 'numClasses',
                                          value='4'), '3 names for the 4 classes'),
    'classes without a number': (features(*PARTS, 'label', 'classLabel', value={}),
                                 'numClasses'),
    'label names twice': (written('label.labels.txt', b'cat\ncat\ndog'),
                          "two classes are called 'cat'"),
    'label names in Latin-1': (written('label.labels.txt', b'cat\n\xe9\ndog'),
                               'cannot name a class'),
    'label names as a pipe': (replaced('label.labels.txt', os.mkfifo), 'a named pipe'),
    'info of text': (written('dataset_info.json', b'hello'), 'dataset_info.json cannot'),
    'info empty': (written('dataset_info.json', b''), 'it is empty'),
    'info very deep': (written('dataset_info.json', b'{"a":' * 10**5), 'cannot be read'),
    'info as a list': (written('dataset_info.json', b'[]'), 'a list, wanted an object'),
    'info as a pipe': (replaced('dataset_info.json', os.mkfifo), 'is a named pipe'),
    'info as a folder': (replaced('dataset_info.json', lambda p: p.mkdir()), 'a folder'),
    'no info': (replaced('dataset_info.json', lambda p: None), 'is not there'),
    'no format': (info('fileFormat', value=...), 'file format None'),
    'riegeli': (info('fileFormat', value='riegeli'), "file format 'riegeli'"),
    'no splits': (info('splits', value=...), "KeyError('splits')"),
    'splits of text': (info('splits', value='train'), 'dataset_info.json cannot'),
    'one split': (info('splits', 1, value=...), "splits ['train']"),
    'a split without shards': (info('splits', 0, 'shardLengths', value=[]), 'wanted'),
    'a split of no length': (info('splits', 0, 'shardLengths', value=...), 'KeyError'),
    'lengths of words': (info('splits', 0, 'shardLengths', value=['x', '12']), "'x'"),
    'lengths below 0': (info('splits', 0, 'shardLengths', value=['-1', '9']), 'negative'),
    'a shard more': (info('splits', 0, 'shardLengths', value=['8', '8', '8']),
                     'lacks 3 of its 6 files'),
    'a million shards': (info('splits', 0, 'shardLengths', value=['1'] * 10**6),
                         'more than 100000 shards'),
    'one example more': (info('splits', 0, 'shardLengths', value=['13', '12']),
                         'holds 12 examples, dataset_info.json says 13'),
    'one example less': (info('splits', 1, 'shardLengths', value=['5', '3']),
                         'holds 4 examples, dataset_info.json says 3'),
    '10**13 examples': (info('splits', 0, 'shardLengths', value=['12', str(10**13)]),
                        'says 10,000,000,000,000'),
    'shard as a pipe': (replaced(SHARD, os.mkfifo), 'is a named pipe'),
    'shard as a folder': (replaced(SHARD, lambda p: p.mkdir()), 'is a folder'),
    'shard in a circle': (replaced(SHARD, lambda p: p.symlink_to(p)), 'in a circle'),
    'shard that leads nowhere': (replaced(SHARD, lambda p: p.symlink_to('x')), 'nowhere'),
    'shard as a device': (replaced(SHARD, lambda p: p.symlink_to('/dev/zero')), 'device'),
    'shard as a page': (written(SHARD, b'<html>404</html>'), 'cannot be decoded'),
    'shard as a pointer': (written(SHARD, b'version https://git-lfs.github'), 'Git LFS'),
    'shard of zeros': (written(SHARD, bytes(131_072)), 'cannot be decoded'),
    'shard of another name': (lambda root: shard(root, 'train', 1).rename(
        folder_of(root) / 'cifar10-train.array_record-00001-of-00003'), 'lacks 1 of'),
    'shards exchanged': (lambda root: shard(root, 'train', 1).write_bytes(
        shard(root, 'test', 1).read_bytes()), 'holds 4 examples'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_folder_is_named(prepared_dir, own_cache, tmp_path, monkeypatch, name):
  damage, words = BAD[name]
  damage(prepared_dir)
  mark = tmp_path / 'modules' / 'made_for_this_test'
  mark.mkdir(parents=True)
  (mark / '__init__.py').write_text(f'open({str(mark / "ran")!r}, "w")')
  monkeypatch.syspath_prepend(tmp_path / 'modules')
  with pytest.raises(DataError) as error:
    data.load('cifar10', data_dir=prepared_dir)
  text = str(error.value)
  assert words in text and '\n' not in text and len(text) < 1500
  assert str(folder_of(prepared_dir)) in text
  assert not (mark / 'ran').exists() and not own_cache.exists()


def test_that_module_would_run(prepared_dir, tmp_path, monkeypatch):
  """What is refused above is what TFDS itself imports."""
  import tensorflow_datasets as tfds
  mark = tmp_path / 'modules' / 'made_for_this_test'
  mark.mkdir(parents=True)
  (mark / '__init__.py').write_text(f'open({str(mark / "ran")!r}, "w")')
  monkeypatch.syspath_prepend(tmp_path / 'modules')
  BAD['class of another feature'][0](prepared_dir)
  with pytest.raises(Exception, match='made_for_this_test'):
    tfds.builder_from_directory(str(folder_of(prepared_dir)))
  assert (mark / 'ran').exists()
  del sys.modules['made_for_this_test']


def record(**features):
  from tensorflow_datasets.proto import tf_example_pb2
  example = tf_example_pb2.Example()
  for name, values in features.items():
    feature = example.features.feature[name]
    kind = feature.int64_list if name == 'label' else feature.bytes_list
    kind.value.extend(values)
  return example.SerializeToString()


def png_of(pixels, form='PNG'):
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, form)
  return stream.getvalue()


PNG = png_of(np.zeros((6, 5, 3), np.uint8))


@pytest.mark.parametrize(('content', 'words'), [
    (b'\xff\xff\xff', 'cannot be decoded'), (b'', '0 images and 0 labels'),
    (record(image=[PNG]), '1 images and 0 labels'),
    (record(label=[1]), '0 images and 1 labels'),
    (record(image=[PNG, PNG], label=[1]), '2 images and 1 labels'),
    (record(image=[PNG], label=[1, 2]), '1 images and 2 labels'),
    (record(image=[b''], label=[1]), 'it is empty'),
    (record(image=[PNG[:50]], label=[1]), 'ends too early'),
    (record(image=[PNG[:45] + b'!' + PNG[46:]], label=[1]), 'checksum'),
    (record(image=[png_of(np.zeros((5, 6, 3), np.uint8))], label=[1]), '(5, 6, 3)'),
    (record(image=[png_of(np.zeros((1, 1, 3), np.uint8))], label=[1]), '(1, 1, 3)'),
    (record(image=[png_of(np.zeros((6, 5), np.uint16))], label=[1]), 'more than 8 bits'),
    (record(image=[PNG], label=[3]), 'label 3 of example 0 is not in 0..2'),
    (record(image=[PNG], label=[-1]), 'label -1 of example 0 is not in 0..2'),
    (record(image=[PNG], label=[2**62]), 'is not in 0..2'),
])
def test_bad_record_is_named(prepared_dir, own_cache, content, words):
  from array_record.python.array_record_module import ArrayRecordWriter
  writer = ArrayRecordWriter(str(shard(prepared_dir, 'test', 0)), 'group_size:1')
  for _ in range(5):
    writer.write(content)
  writer.close()
  with pytest.raises(DataError) as error:
    data.load('cifar10', data_dir=prepared_dir)
  assert words in str(error.value) and '\n' not in str(error.value)
  assert not own_cache.exists()


def test_grey_record_in_a_set_of_colour(prepared_dir, own_cache):
  from array_record.python.array_record_module import ArrayRecordWriter
  grey = np.random.default_rng(5).integers(0, 256, (6, 5), np.uint8)
  writer = ArrayRecordWriter(str(shard(prepared_dir, 'test', 0)), 'group_size:1')
  for _ in range(5):
    writer.write(record(image=[png_of(grey)], label=[1]))
  writer.close()
  stored = prepared.read('cifar10', prepared_dir)
  np.testing.assert_array_equal(stored.test.image[0], np.repeat(grey[..., None], 3, -1))


def test_without_a_file_of_names_the_numbers_serve(prepared_dir, own_cache):
  (folder_of(prepared_dir) / 'label.labels.txt').unlink()
  assert prepared.read('cifar10', prepared_dir).class_names == ('0', '1', '2')
