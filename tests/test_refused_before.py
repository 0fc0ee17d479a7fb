"""What can be known is refused before anything is computed or written."""

import pytest

import rkd_jax as rkd
from rkd_jax.errors import CheckpointError, ConfigError, DataError, RkdError


def taught(model='cnn_3_4', **more):
  """A student of a teacher that would have to be trained first."""
  return {'model': 'cnn_3_4', 'devices': 1, 'teachers': {'robust': {
      'overrides': {'method': 'pgd_at', 'model': model}}}, **more}


def defended(name, model='cnn_3_4', share=0.05, **options):
  return taught(model, method='sd', detox={
      'method': name, 'teacher': 'robust', 'options': options, 'share': share})


def poisoned(trigger, **more):
  return {'method': 'standard', 'model': 'cnn_3_4', 'devices': 1,
          'backdoor': {'trigger': trigger, **more}}


def robustkd(model='cnn_3_4', **settings):
  return taught(model, method='robustkd', robustkd=settings)


def alone(method, **more):
  return {'method': method, 'model': 'cnn_3_4', 'devices': 1, **more}


@pytest.mark.parametrize('config, words', [
    # Networks, built as shapes alone.
    (robustkd(layers='stage9'), "no tapped layer 'stage9'"),
    (robustkd(student_layers='stage1,head'), "no tapped layer 'head'"),
    (robustkd(layers='stage1', student_layers='stage1,stage2'), '1 layers .* but 2'),
    (robustkd(layers='stage1', student_layers='stage2'), 'heights and widths must be'),
    (robustkd('mlp_16', features='plain'), 'no tapped layer|heights and widths'),
    (robustkd('mlp_16_16', features='attention', layers='stage1'), 'heights and widths'),
    ({**robustkd('mlp_16', features='attention'), 'model': 'mlp_16'}, 'attention maps'),
    (alone('adba', adba={'shadow': 'cnn_x'}), "unknown model 'cnn_x'"),
    (alone('adba', adba={'target': 10}), 'adba.target 10 is no class'),
    ({**alone('certified'), 'model': 'resnet8'}, 'statistics of BatchNorm'),
    ({**taught(method='cfd'), 'model': 'resnet8'}, 'statistics of BatchNorm'),
    (alone('certified', dtype='bfloat16'), 'computes in bfloat16 .* dtype=float32'),
    (taught(method='cfd', dtype='float16'), 'computes in float16 .* dtype=float32'),
    ({**alone('standard'), 'model': 'resnet999998'}, 'depth must be at most'),
    ({**alone('standard'), 'model': 'resnet99999999'}, 'more than six digits'),
    ({**alone('standard'), 'model': 'mlp_999999'}, 'every width must be .* <= 65536'),
    ({**alone('standard'), 'model': 'mlp' + '_8' * 101}, 'at most 100 of them'),
    ({**alone('standard'), 'model': 'wide_resnet10_9999'}, '<= 100'),
    (taught('resnet99999999'), 'more than six digits'),
    # Defences and their teachers.
    (defended('masks', layers='stage9'), "the teacher has no tapped layer 'stage9'"),
    (defended('masks', cap=7), r'masks.cap must be in \[0, 1\], got 7'),
    (defended('masks', steps=-3), 'masks.steps must be >= 0, got -3'),
    (defended('fine_pruning', layer='stage9'), "no tapped layer 'stage9'"),
    (defended('nad', layers='stage9'), "no tapped layer 'stage9'"),
    (defended('nad', 'mlp_16'), "layer 'stage1' is a vector"),
    (defended('gates', layers='stage9'), "no tapped layer 'stage9'"),
    (defended('anp', 'mlp_16'), 'neither BatchNorm nor convolutions'),
    (defended('reversed_trigger', classes=11), 'from 0 to the 10 classes'),
    (defended('unlearning', classes=11), 'from 0 to the 10 classes'),
    (defended('masks', share=1e-12), 'detox.share = 1e-12 of the .* images is none'),
    # Triggers, their images and their numbers.
    (poisoned('badnets', options={'size': 8}), 'does not fit'),
    (poisoned('badnets', test_options={'size': 8}), 'does not fit'),
    (poisoned('lc', options={'size': 5}), 'do not fit'),
    (poisoned('lba', layer='stage1', options={'size': 8}), 'does not fit'),
    (poisoned('ckd', layer='stage9'), "unknown backdoor.layer of cnn_3_4 'stage9'"),
    (poisoned('sig', options={'frequency': -1}), 'frequency must be > 0, got -1'),
    (poisoned('sig', options={'frequency': 8}), 'choose one below 4'),
    (poisoned('badnets', target=10), 'target 10 is no class'),
    (poisoned('badnets', rate=1e-6), 'rate 1e-06 of .* images is none'),
    (poisoned('badnets', rate=0.5, decoys=3), 'more than the .* there are'),
    (poisoned('wanet', rate=0.5, cover=2.0), 'more than the .* there are'),
    (poisoned('badnets', cover=1.0), 'has no cover mode'),
    (poisoned('badnets', start='no/such.safetensors'), 'no such file'),
    # The threat.
    (alone('pgd_at', attack={'eps': 8}), 'write 8/255 if you meant units of 0..255'),
    (alone('pgd_at', attack={'norm': 'l2', 'eps': 128}), 'more than the distance 8'),
    (alone('pgd_at', attack={'eps': 0}), 'attack.eps must be > 0 for a method'),
    (alone('trades', attack={'steps': 0}), 'attack.steps must be > 0 for a method'),
    (alone('trades', attack={'step_size': 0}), 'attack.step_size must be > 0'),
    (alone('certified', attack={'eps': 0}), 'attack.eps must be > 0'),
    # Data, attacks, teachers.
    (alone('standard', train={'batch_size': 0}), 'train.batch_size must be >= 1'),
    (alone('standard', train={'batch_size': 5000}), 'batch_size = 5000 is more than'),
    (taught(method='sd', train={'batch_size': 16}, teachers={'robust': {'overrides': {
        'method': 'standard', 'train': {'batch_size': 5000}}}}), 'batch_size = 5000'),
    (alone('standard', evaluation={'attacks': ()}), 'a list of one or more names'),
    (alone('standard', evaluation={'attacks': ('transfer',)}), 'to craft images on'),
    (alone('pgd_at', validation={'attack': 'transfer'}), 'on the student itself'),
    (alone('standard', evaluation={'attacks': ('pgd',)}), "unknown attack 'pgd'"),
    (alone('standard', data={'train_examples': 5000}), 'there are .* examples'),
    (alone('standard', data={'name': 'npz'}), 'data_dir'),
    (alone('standard', seed=2**32), r'config.seed must be <= 4294967295'),
    (alone('sd'), 'needs a robust teacher'),
    (alone('sd', teachers={'robust': {'run': 'no/such/run'}}), 'no finished run there'),
    (alone('sd', teachers={'robust': {'weights': 'w.safetensors'}}), 'robust.model'),
])
def test_refused_before_anything_is_written(config, words, tmp_path):
  kinds = (ConfigError, CheckpointError, DataError)
  with pytest.raises(kinds, match=words):
    rkd.run(config, tmp_path / 'run')
  assert not list(tmp_path.iterdir())


def test_students_are_checked_with_their_teachers(tmp_path):
  config = {**taught(), 'compare': {'seeds': (0,), 'students': (
      ('good', {'method': 'sd'}),
      ('bad', {'method': 'robustkd', 'robustkd': {'layers': 'stage9'}}))}}
  with pytest.raises(RkdError, match="no tapped layer 'stage9'"):
    rkd.compare(config, tmp_path / 'run')
  assert not list(tmp_path.iterdir())


def test_a_threat_of_none_is_fine_where_nobody_is_attacked(monkeypatch, tmp_path):
  monkeypatch.setattr(rkd.experiment, 'run_checked', lambda *_: 'ran')
  for method in ('standard', 'adaptive'):
    assert rkd.run(alone(method, attack={'eps': 0, 'steps': 0}), tmp_path) == 'ran'
