"""The command line: defaults, layers of a config, --help, and one sentence for every invalid argument."""

import json
import re
from pathlib import Path

import pytest

from asen_jax import fields
from asen_jax.errors import InputError
from cli import command_line

NAMES = [field.name for field in fields.TABLE]
INVALID = {
    '--mode=import': '--mode import needs --torch_checkpoint: file to import',
    '--mode=export': '--mode export needs --output: folder',
    '--mode=embed --output=v.npz': '--mode embed needs --images: photos to embed',
    '--mode=eval --images=x': '--images goes with --mode embed or index, not with eval.',
    '--checkpoint=latest': '--checkpoint goes with --mode eval, report, export, embed or index, not with train.',
    '--darn_urls=urls.txt --config={configs}/darn.py': '--darn_urls goes with --mode prepare, not with train.',
    '--darn_urls=urls.txt --mode=prepare': '--darn_urls goes with --mode prepare --config configs/darn.py.',
    '--darn_urls= --mode=prepare': 'flag --darn_urls=: the path is empty',
    '--mode=export --output=x --format=onnx': 'value should be one of <jax|torch>',
    '--mode=evaluate': 'value should be one of <train|eval|report|prepare|import|export|embed|index|search|serve>',
    '--split=train': 'value should be one of <valid|test>',
    '--fast': "Unknown command line flag 'fast'",
    'eval': "'eval' is not a flag; flags begin with two dashes",
    '--config': 'Missing value for flag --config',
    '--config=nothing.py': 'There is no config file nothing.py; choose one such as configs/catalog.py.',
    '--config=broken.py': "unsupported operand type(s) for +: 'int' and 'str'",
    '--config=foreign.py': 'uses a field that asen_jax/fields.py does not have: ',
    '--config={configs}/darn.py:big': "No variant 'big': write one of asen, asen_v2",
    '--config={configs}/zappos50k.py:big': 'no_channel, csn_original after the colon of --config.',
    '--config.seed': 'Missing value for flag --config.seed',
    '--config.seed=x': 'flag --config.seed=x: invalid literal',
    '--config.train.batch_size=0': 'config.train.batch_size is 0; it must be between 1 and 65,536.',
    '--config.data.num_workers=-1': 'config.data.num_workers is -1; it must be between 0 and 256.',
    '--config.optim.learning_rate=nan': 'config.optim.learning_rate is nan',
    '--config.data.jitter=1': 'config.data.jitter is 1.0; it must be between 0 and 0.99.',
    '--config.seed=4294967296': 'config.seed is 4294967296; it must be between 0 and 4,294,967,295.',
    '--config.data.missing=ignore': "config.data.missing is 'ignore'; it must be one of error, skip.",
    '--config.model.trunk=resnet19': 'it must be one of resnet18, resnet34, resnet50, efficientnet_lite0.',
    '--config.model.efficientnet.stride=8': 'config.model.efficientnet.stride is 8; it must be one of 16, 32.',
    '--config.data.dir=': 'config.data.dir is empty; give it a value, or leave out the flag.',
    '--config.optim={{}}': "config has no field 'optim'; did you mean --config.optim.learning_rate?",
    '--config.data={{}} --mode=prepare': "config has no field 'data'; did you mean --config.data.name?",
    '--config.learning_rte=1': "no field 'learning_rte'; did you mean --config.optim.learning_rate?",
    '--config.train.batchsize=1': "no field 'train.batchsize'; did you mean --config.train.batch_size?",
    '--config.batch_size=1 --config={configs}/darn.py': 'did you mean --config.train.batch_size?',
    '--config.qqq.www=1': "config has no field 'qqq.www'; --help lists the fields.",
}
WORKDIRS = {
    '': 'runs/catalog-shop',
    '--config.data.manual_dir=other/': 'runs/catalog-other',
    '--config.name=mine': 'runs/mine',
    '--config.data.name=darn': 'runs/catalog',
    '--workdir=w': 'w',
}
DAMAGED = {
    '{': 'config.json is not a JSON object (Expecting property name',
    '[]': 'config.json is not a JSON object (it is []',
    '{"seed": "x"}': "config.json: Could not override field 'seed'",
}
OF_ANOTHER_TYPE = {
    '{"seed": null}': 'config.seed is None; it must be a whole number.',
    '{"data": {"image_size": true}}': 'config.data.image_size is True; it must be a whole number.',
    '{"data": {"attributes": null}}': 'config.data.attributes is None; it must be text separated by commas.',
    '{"data": {"attributes": [0]}}': 'config.data.attributes is (0,); it must be text separated by commas.',
    '{"data": {"attributes": 0}}': "config.json: Could not override field 'attributes'",
}
ATTRIBUTES = {
    ('--config.data.attributes=fit,base colour',): ('fit', 'base colour'),
    ('--config.data.attributes', 'fit'): ('fit',),
    ('--config.data.attributes=fit,cut (front)',): ('fit', 'cut (front)'),
    ("--config.data.attributes=['fit', 'cut']",): ('fit', 'cut'),
    ('--config.data.attributes=(back) fit',): ('(back) fit',),
    ('--config.data.attributes=fit', '--config.data.attributes=cut'): ('fit', 'cut'),
    ('--config.data.attributes=',): (),
}


def parse(*arguments):
    return command_line.parse(['main.py', *arguments])


def config_path(name):
    return str(command_line.CONFIGS / f'{name}.py')


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_defaults():
    mode, config, workdir, flags = parse()
    assert (mode, config.name, str(workdir)) == ('train', 'fashionai', 'runs/fashionai')
    assert (flags.checkpoint, flags.split, flags.format, flags.strict) == ('best', 'test', 'jax', False)


@pytest.mark.parametrize('written', ['--config={}', '--config {}', '-config={}'])
def test_flags_are_accepted_in_any_order(written):
    config_flag = written.format(config_path('fashionai') + ':asen_v2').split()
    mode, config, workdir, _ = parse('--config.seed', '3', '--mode', 'eval', *config_flag, '--noconfig.data.flip')
    assert (mode, str(workdir)) == ('eval', 'runs/fashionai_asen_v2')
    assert (config.model.name, config.seed, config.data.flip) == ('asen_v2', 3, False)


@pytest.mark.parametrize('written,attributes', ATTRIBUTES.items())
def test_attributes_are_separated_by_commas(written, attributes):
    assert parse(*written).config.data.attributes == attributes


@pytest.mark.parametrize('option,workdir', WORKDIRS.items())
def test_two_catalogs_do_not_share_a_default_workdir(option, workdir):
    options = ['--config.data.manual_dir=a/shop', *option.split()]
    assert str(parse('--config', config_path('catalog'), *options).workdir) == workdir
    variant = workdir.replace('/catalog', '/catalog_csn')
    assert str(parse('--config', config_path('catalog') + ':csn', *options).workdir) == variant


def test_a_leading_tilde_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    arguments = parse('--mode', 'export', '--workdir=~/w', '--output=~/x')
    assert (arguments.workdir, arguments.flags.output) == (tmp_path / 'w', str(tmp_path / 'x'))
    for flag in ('--output', '--workdir', '--config.data.dir', '--config.init.trunk', '--config.init.workdir'):
        with pytest.raises(InputError, match="'~nobody9/x' names a home folder that does not exist; write the path in"):
            parse('--mode', 'export', '--output=x', f'{flag}=~nobody9/x')


@pytest.mark.parametrize('arguments,sentence', INVALID.items())
def test_invalid_arguments_get_one_sentence(arguments, sentence, tmp_path):
    (tmp_path / 'broken.py').write_text('def get_config():\n    return 1 + "1"\n')
    (tmp_path / 'foreign.py').write_text(
        'from configs.common import get_config as f\nget_config = lambda: f().nowhere\n'
    )
    with pytest.raises(InputError, match=re.escape(sentence)) as caught:
        parse(*arguments.format(configs=command_line.CONFIGS).split())
    assert not re.search('\n|Traceback', str(caught.value))


def test_a_workdir_remembers_its_config_but_flags_win(tmp_path, capsys):
    remembered = {'seed': 5, 'data': {'attributes': ['a', 'b']}, 'train': {'margin': 0.3}, 'gone': {'far': 1}}
    (tmp_path / 'config.json').write_text(json.dumps(remembered))
    config = parse('--workdir=.', '--config.seed=7').config
    assert (config.seed, config.data.attributes, config.train.margin) == (7, ('a', 'b'), 0.3)
    ignored, changed = capsys.readouterr().out.splitlines()
    assert ignored == 'config.json: ignored gone.far, which is not a field of this version'
    assert changed == 'config.seed is 7; . had 5'
    config = parse('--workdir=.', '--config', config_path('fashionai')).config
    assert (config.seed, config.data.attributes, config.train.margin) == (0, (), 0.2)
    assert 'config.train.margin is 0.2; . had 0.3' in capsys.readouterr().out


@pytest.mark.parametrize('text,sentence', OF_ANOTHER_TYPE.items())
def test_a_value_of_another_type_in_a_config_json_is_refused(tmp_path, text, sentence):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(InputError, match=re.escape(sentence)):
        parse('--workdir=.')


@pytest.mark.parametrize('text,sentence', DAMAGED.items())
def test_a_damaged_config_json_is_refused(tmp_path, text, sentence):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(InputError, match=re.escape(sentence) + '.*; fix it, or name another --workdir'):
        parse('--workdir=.')


def test_help_lists_modes_flags_and_every_field_with_its_meaning(capsys):
    assert parse('--config.seed=x', '--help') is None
    text = capsys.readouterr().out
    for mode in command_line.MODES:
        assert re.search(rf'^  {mode} +\S', text, re.M)
    for flag in ('workdir', 'split', 'darn_urls', r'\[no\]strict'):
        assert re.search(rf'^  --{flag}: \S', text, re.M)
    for field in NAMES:
        assert re.search(rf'^  {re.escape(field)} +\S.*  \S', text, re.M), field
    assert re.search(r'^  train\.margin +0\.2 +margin of the triplet loss$', text, re.M)


@pytest.mark.parametrize('name', ['catalog', 'darn', 'deepfashion', 'fashionai', 'synthetic', 'zappos50k'])
def test_every_config_has_exactly_the_fields_of_the_table_and_says_how_to_run_it(name):
    config = parse('--config', config_path(name)).config
    assert sorted(fields.flatten(config.to_dict())) == sorted(NAMES)
    docstring = Path(config_path(name)).read_text().split('"""')[1]
    assert all(part in docstring for part in ('Source: ', f'main.py --config configs/{name}.py', 'Result: ', 'Time: '))


def test_every_number_has_a_range_or_choices():
    assert all(field.allowed for field in fields.TABLE if type(field.default) in (int, float))
    fields.check_fields(fields.default_config())


def test_the_published_recipes_are_the_papers():
    asen, v2 = parse().config, parse('--config', config_path('fashionai') + ':asen_v2').config
    for config in (asen, v2):
        assert (config.model.trunk, config.model.embed_dim, config.model.bn_per_role) == ('resnet50', 1024, True)
        assert (config.train.margin, config.train.batch_size, config.data.num_triplets) == (0.2, 16, 100_000)
        assert (config.data.image_size, config.data.fit, config.data.flip, config.data.jitter) == (224, 'crop', True, 0)
        assert (config.train.loss, config.optim.learning_rate, config.init.trunk) == ('triplet', 1e-4, 'imagenet')
        assert not config.data.crop_to_bbox
    assert (asen.optim.decay_rate, asen.optim.decay_every_epochs, asen.train.num_epochs) == (0.985, 1, 200)
    assert (v2.optim.decay_rate, v2.optim.decay_every_epochs, v2.train.num_epochs) == (0.9, 3, 50)
