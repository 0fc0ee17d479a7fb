"""Small data sets on disk, made from known arrays."""

import io
import json

import numpy as np
import pytest
from PIL import Image


def _record(image, label):
  """One record as TFDS writes it: a tf.train.Example with a PNG inside."""
  from tensorflow_datasets.proto import tf_example_pb2
  png = io.BytesIO()
  Image.fromarray(image).save(png, 'PNG')
  example = tf_example_pb2.Example()
  example.features.feature['image'].bytes_list.value.append(png.getvalue())
  example.features.feature['label'].int64_list.value.append(label)
  return example.SerializeToString()


def _write_shards(folder, name, split, images, labels, shards):
  from array_record.python.array_record_module import ArrayRecordWriter
  parts = np.array_split(np.arange(len(labels)), shards)
  for number, part in enumerate(parts):
    writer = ArrayRecordWriter(
        str(folder / f'{name}-{split}.array_record-{number:05d}-of-{shards:05d}'),
        'group_size:1')
    for i in part:
      writer.write(_record(images[i], int(labels[i])))
    writer.close()
  return {
      'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      'name': split, 'numBytes': '1',
      'shardLengths': [str(len(part)) for part in parts]}


def _features(shape, num_classes):
  core = 'tensorflow_datasets.core.features'
  return {
      'pythonClassName': f'{core}.features_dict.FeaturesDict',
      'featuresDict': {'features': {
          'image': {
              'pythonClassName': f'{core}.image_feature.Image',
              'image': {'dtype': 'uint8',
                        'shape': {'dimensions': [str(n) for n in shape]}}},
          'label': {
              'pythonClassName': f'{core}.class_label_feature.ClassLabel',
              'classLabel': {'numClasses': str(num_classes)}}}}}


@pytest.fixture
def arrays():
  """uint8 images and labels of 3 classes: 24 for training, 9 for test."""
  random = np.random.default_rng(0)
  return {
      'x_train': random.integers(0, 256, (24, 6, 5, 3), np.uint8),
      'y_train': np.arange(24) % 3,
      'x_test': random.integers(0, 256, (9, 6, 5, 3), np.uint8),
      'y_test': np.arange(9)[::-1] % 3}


@pytest.fixture
def prepared_dir(tmp_path, arrays):
  """A TFDS directory that holds `arrays` as cifar10 3.0.2, in 2 shards a split."""
  folder = tmp_path / 'tfds' / 'cifar10' / '3.0.2'
  folder.mkdir(parents=True)
  splits = [
      _write_shards(folder, 'cifar10', split, arrays[f'x_{split}'],
                    arrays[f'y_{split}'], shards=2)
      for split in ('train', 'test')]
  (folder / 'features.json').write_text(json.dumps(_features((6, 5, 3), 3)))
  (folder / 'label.labels.txt').write_text('cat\ndog\ncow')
  (folder / 'dataset_info.json').write_text(json.dumps({
      'name': 'cifar10', 'version': '3.0.2', 'fileFormat': 'array_record',
      'moduleName': 'made.for.a.test', 'splits': splits}))
  return tmp_path / 'tfds'


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
  """An empty cache folder of this test alone."""
  path = tmp_path / 'cache'
  monkeypatch.setenv('RKD_CACHE_DIR', str(path))
  return path
