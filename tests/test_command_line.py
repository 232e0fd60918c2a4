"""The command line: layers of a config, and one sentence for whatever cannot be meant."""

import json
import re
import sys

import pytest

import command_line
from asen_jax.errors import InputError
from configs import common


def parse(*arguments):
    return command_line.parse(['main.py', *arguments], lambda config: config.name)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def config_path(name):
    return str(command_line.HERE / f'{name}.py')


def test_the_default_is_fashionai():
    arguments = parse()
    assert arguments.mode == 'train'
    assert (arguments.config.name, arguments.flags.checkpoint, arguments.flags.split) == ('fashionai', 'best', 'test')
    assert str(arguments.workdir) == 'runs/fashionai'


def test_flags_come_in_any_order_and_a_variant_after_a_colon():
    arguments = parse('--config.seed=3', '--mode', 'eval', '--config', config_path('fashionai') + ':asen_v2')
    assert (arguments.mode, arguments.config.seed, arguments.config.model.name) == ('eval', 3, 'asen_v2')
    assert str(arguments.workdir) == 'runs/fashionai_asen_v2'
    assert sys.argv[0] != 'main.py'


def test_attributes_are_a_list_of_names():
    assert parse('--config.data.attributes=fit,base colour').config.data.attributes == ('fit', 'base colour')
    for written in (
        ['--config.data.attributes=fit'],
        ['--config.data.attributes', 'fit'],
        ["--config.data.attributes=['fit']"],
    ):
        assert parse(*written).config.data.attributes == ('fit',)
    assert parse('--config.data.attributes=').config.data.attributes == ()


def test_paths_may_begin_with_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    arguments = '--mode', 'export', '--workdir=~/w', '--output=~/x'
    assert parse(*arguments).flags.output == str(tmp_path / 'x') and parse(*arguments).workdir == tmp_path / 'w'
    for flag in ('--output=~nobody9/x', '--workdir=~nobody9/x', '--config.data.dir=~nobody9/x'):
        with pytest.raises(InputError, match="'~nobody9/x' names a home that is not there"):
            parse(*arguments, flag)


def test_urls_of_darn_are_for_preparing_it():
    config = config_path('darn')
    assert parse('--config', config, '--mode', 'prepare', '--darn_urls=urls.txt').flags.darn_urls == 'urls.txt'
    for arguments in (['--config', config], ['--mode', 'prepare']):
        with pytest.raises(InputError, match=r'--darn_urls goes with --mode prepare'):
            parse(*arguments, '--darn_urls=urls.txt')
    with pytest.raises(InputError, match='--darn_urls is empty'):
        parse('--config', config, '--mode', 'prepare', '--darn_urls=')


@pytest.mark.parametrize('arguments,says', [
    (['--mode', 'import'], '--mode import needs --torch_checkpoint: file to import'),
    (['--mode', 'export'], '--mode export needs --output: folder'),
    (['--mode', 'embed', '--output=v.npz'], '--mode embed needs --images: folder'),
    (['--mode', 'eval', '--images=x'], '--images goes with --mode embed, not with eval'),
    (['--mode', 'export', '--output=x', '--format=onnx'], 'one of <jax|torch>'),
    (['--mode', 'train', '--checkpoint=latest'], '--checkpoint goes with --mode eval or export or embed, not with train'),
])  # fmt: skip
def test_each_mode_has_its_own_flags(arguments, says):
    with pytest.raises(InputError, match=re.escape(says)):
        parse(*arguments)


@pytest.mark.parametrize('front', [[], ['--config', config_path('fashionai')]])
def test_a_misspelt_field_names_the_nearest(front):
    with pytest.raises(
        InputError, match=r"config has no field 'learning_rte'; did you mean --config\.optim\.learning_rate\?"
    ):
        parse(*front, '--config.learning_rte=1')
    with pytest.raises(InputError, match=r"no field 'train\.batchsize'; did you mean --config\.train\.batch_size\?"):
        parse(*front, '--config.train.batchsize=1')
    with pytest.raises(InputError, match="no field 'qqq'; --help lists the fields"):
        parse(*front, '--config.qqq=1')


@pytest.mark.parametrize(
    'arguments,sentence',
    [
        (['--config=nothing.py'], r'There is no config file nothing\.py; name one like configs/catalog\.py\.'),
        (['--config', config_path('fashionai') + ':big'], "No variant 'big': write one of asen, asen_v2"),
        (['--config.seed=x'], r'config\.seed=x: invalid literal'),
        (['--mode=evaluate'], 'value should be one of <train|eval|prepare|import|export|embed>'),
        (['--fast'], "Unknown command line flag 'fast'"),
        (['eval'], "'eval' is not a flag"),
        (['--config.seed'], r'Missing value for flag --config\.seed'),
        (['--config.train.batch_size=0'], r'config\.train\.batch_size is 0; give it more than zero\.'),
        (['--config.data.num_workers=-1'], r'config\.data\.num_workers is -1; give it zero or more\.'),
        (['--config.optim.learning_rate=nan'], r'config\.optim\.learning_rate is nan'),
        (['--config.data.jitter=1'], r'config\.data\.jitter is 1\.0, which would cut everything away'),
        (['--split=train'], 'value should be one of <valid|test>'),
    ],
)
def test_what_cannot_be_meant_gets_one_sentence(arguments, sentence):
    with pytest.raises(
        InputError, match=re.escape(sentence).replace(r'\\', '') if '<' in sentence else sentence
    ) as caught:
        parse(*arguments)
    assert '\n' not in str(caught.value)


def remember(workdir, **fields):
    """A workdir whose config.json is fashionai's with `fields` changed."""
    config = parse().config
    config.update_from_flattened_dict(fields)
    workdir.mkdir(exist_ok=True)
    (workdir / 'config.json').write_text(config.to_json())


def test_a_workdir_remembers_and_a_flag_wins(tmp_path, capsys):
    remember(tmp_path / 'w', **{'train.margin': 0.3, 'seed': 5, 'data.attributes': ('a', 'b')})
    config = parse('--workdir', 'w', '--config.seed=7').config
    assert (config.train.margin, config.seed, config.data.attributes) == (0.3, 7, ('a', 'b'))
    assert 'config.seed is 7; w had 5' in capsys.readouterr().out


def test_an_explicit_config_wins_over_the_workdir(tmp_path, capsys):
    remember(tmp_path / 'w', **{'train.margin': 0.3})
    assert parse('--workdir', 'w', '--config', config_path('fashionai')).config.train.margin == 0.2
    assert 'config.train.margin is 0.2; w had 0.3' in capsys.readouterr().out


def test_a_damaged_or_foreign_config_json_is_named(tmp_path, capsys):
    remember(tmp_path / 'w')
    path = tmp_path / 'w' / 'config.json'
    good = json.loads(path.read_text())
    path.write_text(json.dumps({**good, 'gone': 1}))
    parse('--workdir', 'w')
    assert 'field gone is of another version and ignored' in capsys.readouterr().out
    path.write_text(json.dumps({**good, 'seed': 'x'}))
    with pytest.raises(InputError, match=r'w/config\.json, field seed: .*type'):
        parse('--workdir', 'w')
    path.write_text('[]')
    with pytest.raises(InputError, match=r'w/config\.json is not readable as JSON \(no object\)'):
        parse('--workdir', 'w')
    path.write_text('{')
    with pytest.raises(InputError, match=r'w/config\.json is not readable as JSON'):
        parse('--workdir', 'w')


def test_help_lists_modes_and_every_field_with_its_comment(capsys):
    assert parse('--help') is None
    text = capsys.readouterr().out
    for mode in command_line.MODES:
        assert re.search(rf'^  {mode} ', text, re.M)
    fields = command_line._flatten(common.get_config().to_dict())
    assert {field for field, _ in command_line.config_fields()} == set(fields)
    for field in fields:
        assert re.search(rf'^  {re.escape(field)} +\S.*  \S', text, re.M), field
    assert re.search(r'train\.margin +0\.2 +of the triplet loss', text)


@pytest.mark.parametrize('name', command_line.config_names())
def test_every_config_file_has_the_common_fields(name):
    path = command_line.HERE / f'{name}.py'
    config = parse('--config', str(path)).config
    assert command_line._flatten(config.to_dict()).keys() == command_line._flatten(common.get_config().to_dict()).keys()
    assert path.read_text().split('"""')[1].count('python main.py')


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
