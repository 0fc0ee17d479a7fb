"""The stage of `rkd detect`: does a finished run's network look backdoored?"""

import pathlib

from rkd_jax import data, detox, files
from rkd_jax.detox.detection import SMALL, SUSPICIOUS
from rkd_jax.evaluation.backdoor import feature_variance
from rkd_jax.models.taps import with_features
from rkd_jax.report import provenance
from rkd_jax.stages import build
from rkd_jax.stages.trained import best_student

TABLE = pathlib.Path('tables', 'detect.json')


def detect(config, workdir: pathlib.Path, dataset: data.Dataset, examples: int,
           progress, **settings) -> dict:
  """`detox.detect` on a run's student at its best; writes and returns `TABLE`.

  Args:
    config: of the run.
    workdir: of the run, whose training is finished.
    dataset: clean.
    examples: training images of the defender.
    progress: a bar.
    **settings: of `detox.detect`.

  Returns:
    {'classes': {class: {'size', 'success', 'reach', 'anomaly'}}, 'suspects':
    [class, ...], 'variance': of each tapped feature on the same images, ...}.
  """
  progress.stage('detect')
  split = build.first(dataset.train, examples)
  student, variables = best_student(config, workdir, dataset)
  found = detox.detect(lambda images: student.predict(variables, images), split,
                       dataset.num_classes, seed=config.seed, **settings)
  anomaly = found.anomaly
  features = lambda images: with_features(student.module, variables, images)[1]
  table = {
      'model': config.model, 'data': config.data.name, 'examples': len(split),
      'settings': settings, 'threshold': SUSPICIOUS, 'small_patch': SMALL,
      'suspects': found.suspects,
      'classes': {str(k): {
          'size': float(found.size[k]), 'success': float(found.success[k]),
          'reach': float(found.reach[k]), 'anomaly': float(anomaly[k])}
          for k in range(dataset.num_classes)},
      'variance': feature_variance(features, split.image), **provenance.describe()}
  files.write_json(workdir / TABLE, table)
  return table
