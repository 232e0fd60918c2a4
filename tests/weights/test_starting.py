"""A run can start from all weights of another network, whose attributes are matched by name."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from asen_jax.checkpoint import Checkpoints
from asen_jax.errors import InputError
from asen_jax.models.build import build_model, build_shapes
from asen_jax.training import loop
from asen_jax.weights import starting, torch_names
from asen_jax.weights.importing import import_checkpoint
from asen_jax.weights.model_card import make_card
from configs import variants
from data_builders import prepare
from tests.conftest import tiny_config

KNOWN = ['sleeve', 'color', 'neck']
NEW_ORDER = ['color', 'pattern', 'sleeve', 'hem']  # without neck, and with two new ones


@pytest.fixture
def config(tmp_path):
    """A run that starts from `tmp_path / 'source'`, with another seed than the source's."""
    config = tiny_config()
    config.seed = 1
    config.init.workdir = str(tmp_path / 'source')
    return config


def save_source(config):
    """Save checkpoints of an untrained network in `config.init.workdir`; returns the arrays of each."""
    config = config.copy_and_resolve_references()
    arrays = {}
    with Checkpoints(Path(config.init.workdir)) as checkpoints:
        for config.seed, (kind, step) in enumerate([('best', 4), ('latest', 6)], start=100):
            _, params, batch_stats = build_model(config, len(KNOWN))
            batch_stats = jax.tree.map(lambda leaf: leaf + 0.05, batch_stats)
            about = {'step': step, 'config': json.loads(config.to_json()), 'attributes': KNOWN, 'fingerprint': 'f'}
            about['dataset'] = 'catalog'
            trees = {'params': params, 'batch_stats': batch_stats}
            checkpoints.save(kind, trees, about)
            arrays[kind] = flat(params, batch_stats)
        checkpoints.wait()
    return arrays


def flat(params, batch_stats):
    return torch_names.flatten(params) | torch_names.flatten(batch_stats)


def start(config, attributes):
    """All arrays that a run starts with, those that were drawn for it, and where they come from."""
    _, drawn, batch_stats = build_model(config, len(attributes))
    params, read_stats, origin = starting.read_start(config, attributes, drawn, batch_stats)
    return flat(params, read_stats), flat(drawn, batch_stats), origin


def check(config, workdir):
    with Checkpoints(workdir, read_only=True) as checkpoints:
        return starting.check_start(config, checkpoints, build_shapes(config, 2)[1])


@pytest.mark.parametrize('variant', ['asen', 'asen_v2', 'csn', 'no_spatial', 'no_channel'])
def test_rows_are_matched_by_name_and_the_rest_is_the_sources(config, variant, capsys):
    variants.set_network(config, variant)
    config.model.asen_v2.projection = 8 * (variant == 'asen_v2')
    source = save_source(config)['best']
    arrays, drawn, origin = start(config, NEW_ORDER)
    assert arrays.keys() == source.keys() == drawn.keys()
    tables = [name for name in arrays if name.endswith('.rows')]
    assert tables
    for name in arrays.keys() - set(tables):
        np.testing.assert_array_equal(arrays[name], source[name], err_msg=name)
    for name in tables:
        expected = [source[name][1], drawn[name][1], source[name][0], drawn[name][3]]
        np.testing.assert_array_equal(arrays[name], np.stack(expected), err_msg=name)
    assert origin == {'workdir': config.init.workdir, 'step': 4, 'dataset': 'catalog'}
    printed = f'starting from {config.init.workdir}, step 4; attributes kept: color, sleeve; new: pattern, hem; dropped: neck\n'
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize('masks', ['learned', 'sections', 'fixed'])
@pytest.mark.parametrize('variant', variants.VARIANTS)
def test_the_parameters_with_a_row_per_attribute_are_known_by_name(variant, masks):
    config = tiny_config()
    variants.set_network(config, variant)
    config.model.csn.masks, config.model.asen_v2.projection = masks, 8 * (config.model.name == 'asen_v2')
    three, five = (torch_names.flatten(build_shapes(config, number)[1]) for number in (3, 5))
    differ = {name for name in three if three[name].shape != five[name].shape}
    assert differ == {name for name in three if name.endswith(starting.PER_ATTRIBUTE)}
    assert all((three[name].shape[0], five[name].shape[0]) == (3, 5) for name in differ)


@pytest.mark.parametrize('which,kind', [('best', 'best'), ('latest', 'latest'), ('6', 'latest')])
def test_another_checkpoint_can_be_named(config, which, kind):
    source = save_source(config)[kind]
    config.init.checkpoint = which
    arrays, _, _ = start(config, KNOWN)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, source[name], err_msg=name)


def test_a_source_that_shares_no_attribute_still_gives_the_rest(config, capsys):
    source = save_source(config)['best']
    arrays, drawn, _ = start(config, ['hem'])
    np.testing.assert_array_equal(arrays['conditions.rows'], drawn['conditions.rows'])
    np.testing.assert_array_equal(arrays['trunk.conv1.kernel'], source['trunk.conv1.kernel'])
    assert 'kept: none; new: hem; dropped: sleeve, color, neck' in capsys.readouterr().out


def test_an_import_without_names_takes_those_of_the_config(config, tmp_path, capsys):
    _, *arrays = build_model(config, 3)
    save_file(torch_names.to_torch(config.model, *jax.device_get(arrays), 3), tmp_path / 'weights.safetensors')
    import_checkpoint(config, tmp_path / 'source', tmp_path / 'weights.safetensors')
    source = flat(*arrays)['conditions.rows']
    config.seed = 2
    config.data.attributes = ('b', 'a', 'c')
    arrays, _, origin = start(config, ['a', 'b', 'c'])
    np.testing.assert_array_equal(arrays['conditions.rows'], source[np.array([1, 0, 2])])
    assert origin == {'workdir': config.init.workdir, 'step': 0, 'dataset': None}
    config.data.attributes = ()
    start(config, ['a', 'b'])
    assert 'kept: none; new: a, b; dropped: attribute_0, attribute_1, attribute_2' in capsys.readouterr().out


def test_fixed_masks_need_the_same_attributes_in_the_same_order(config):
    variants.set_network(config, 'csn')
    config.model.csn.masks = 'fixed'
    save_source(config)
    start(config, KNOWN)
    with pytest.raises(InputError, match=r'was trained on the attributes sleeve, color, neck, but the data has color,'):
        start(config, ['color', 'sleeve', 'neck'])


def test_what_does_not_match_stays_as_drawn_and_is_listed(config, tmp_path, capsys):
    source = save_source(config)['best']
    config.model.feature_bn, config.model.asen.channel_attention = True, False
    config.model.asen_v2.projection = 8
    assert check(config, tmp_path / 'new') >= {'trunk', 'head', 'conditions'}
    arrays, drawn, _ = start(config, KNOWN)
    assert arrays.keys() == drawn.keys()
    new = {'feature_bn.scale', 'head.hidden_fc.kernel', 'head.fc.rows'}
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], source.get(name, drawn[name]), err_msg=name)
    assert new <= arrays.keys() - source.keys()
    printed = capsys.readouterr().out
    assert 'new, not in that checkpoint: feature_bn.bias (1 arrays), ' in printed and 'head.fc (1 arrays)' in printed
    assert 'left out of that checkpoint: head.channel (4 arrays), head.channel_fc (2 arrays)' in printed


def test_another_trunk_comes_from_init_trunk_and_nothing_in_common_is_refused(config, tmp_path):
    save_source(config)
    config.model.resnet.width = 16
    assert check(config, tmp_path / 'new') == {'conditions', 'head'}
    config.model.name = 'triplet'
    says = f'config.init.workdir is {config.init.workdir}, where no parameter fits config.model'
    with pytest.raises(InputError, match=re.escape(says)):
        check(config, tmp_path / 'new')


def test_a_missing_workdir_or_checkpoint_is_named(config, tmp_path):
    with pytest.raises(
        InputError, match=r"source/checkpoints has no checkpoint 'best'; train first, or name another workdir"
    ):
        check(config, tmp_path / 'new')
    assert not (tmp_path / 'source').exists()
    save_source(config)
    config.init.checkpoint = '5'
    with pytest.raises(
        InputError,
        match=r"source/checkpoints has no checkpoint '5'; it has best \(step 4\), latest \(step 6\): name one of these",
    ):
        check(config, tmp_path / 'new')


def test_a_run_cannot_start_from_itself(config, tmp_path):
    save_source(config)
    config.init.workdir = str(tmp_path / 'new' / '..' / 'source')
    with pytest.raises(InputError, match='the folder of this run itself; name another --workdir'):
        check(config, tmp_path / 'source')


def test_a_run_that_resumes_does_not_need_its_source(config, tmp_path):
    save_source(config)
    config.init.workdir = str(tmp_path / 'gone')
    assert loop.check_config(config, tmp_path / 'source') == ({}, {})


def test_without_a_workdir_nothing_is_checked(config, tmp_path):
    config.init.workdir = ''
    assert loop.check_config(config, tmp_path / 'new') == ({}, {})


def test_training_starts_from_the_source_once(config, records_root, tmp_path, capsys):
    config.data.dir, config.train.num_epochs, config.optim.learning_rate = str(records_root), 1, 1e-12
    source, new = save_source(config)['best'], tmp_path / 'new'
    loop.train_and_evaluate(config, new, prepare.prepare(config))
    with Checkpoints(new, read_only=True) as checkpoints:
        arrays = torch_names.flatten(checkpoints.restore('latest', {'params': None})['params'])
    for name, array in arrays.items():
        if not name.endswith('.rows'):
            np.testing.assert_allclose(array, source[name], atol=1e-6, err_msg=name)
    capsys.readouterr()
    shutil.rmtree(config.init.workdir)
    config.train.num_epochs = 2
    loop.train_and_evaluate(config, new, prepare.prepare(config))
    assert 'starting from' not in capsys.readouterr().out
    with Checkpoints(new, read_only=True) as checkpoints:
        origin = {'workdir': config.init.workdir, 'step': 4, 'dataset': 'catalog'}
        meta = checkpoints.read_meta('latest')
    assert meta['started_from'] == origin
    assert 'weights from step 4 of' in make_card(meta, [], 'jax')


def test_a_wrong_source_is_refused_before_any_photo_is_decoded(config, tmp_path):
    config.init.trunk = 'imagenet'  # is not looked for
    with pytest.raises(InputError, match="has no checkpoint 'best'"):
        loop.check_config(config, tmp_path / 'new')
    save_source(config)
    assert loop.check_config(config, tmp_path / 'new') == ({}, {})
