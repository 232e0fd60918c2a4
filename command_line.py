"""The command line: flags, the layers of a config (file, workdir, --config, --config.field=value), and --help."""

import ast
import difflib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from asen_jax.errors import InputError

HERE = Path(__file__).resolve().parent
DEFAULT_CONFIG = HERE / 'configs' / 'fashionai.py'
NO_CONFIGS = ('__init__', 'common', 'variants')
MAY_BE_ZERO = (
    'seed',
    'data.num_workers',
    'data.jitter',
    'train.save_every_steps',
    'train.margin',
    'train.embedding_norm',
    'train.mask_norm',
)
MODES = {
    'train': 'prepare if needed, train, evaluate on valid each epoch, keep best and latest, resume; test the best at the end',
    'eval': 'evaluate a checkpoint; print the table and write eval_<split>.json',
    'prepare': 'build the records only; print what was read, skipped and why; write prepare.json beside them',
    'import': "a PyTorch checkpoint of the original ASEN or CSN becomes the workdir's checkpoint",
    'export': 'write a frozen program with its weights, or the state dict of the original, to --output',
    'embed': 'vectors of any photos, to the file --output',
}
# flag -> the modes that it belongs to; those in NEEDED must have it
MODES_OF = {
    'checkpoint': ('eval', 'export', 'embed'), 'split': ('eval',), 'darn_urls': ('prepare',), 'torch_checkpoint': ('import',),
    'output': ('export', 'embed'), 'format': ('export',), 'images': ('embed',), 'heatmaps': ('embed',), 'strict': ('embed',),
}  # fmt: skip
NEEDED = {'import': ('torch_checkpoint',), 'export': ('output',), 'embed': ('images', 'output')}
FLAGS = {
    'checkpoint': 'best | latest | STEP: what eval, export and embed take; default best',
    'split': 'valid | test: what it is evaluated on; default test',
    'darn_urls': 'list of URLs: prepare fetches the photos of DARN that are not there yet',
    'torch_checkpoint': 'file to import: .pth.tar, .pth or .safetensors',
    'output': 'folder of the export; .npz file of the vectors',
    'format': "jax | torch: a program with its weights, or the original's state dict; default jax",
    'images': 'folder, "glob", list of paths or .csv with a column path: the photos to embed',
    'heatmaps': 'also write where the network looks in each photo',
    'strict': 'stop at the first photo that cannot be read, instead of skipping it',
}


PATHS = ('darn_urls', 'torch_checkpoint', 'output', 'images')


class Arguments(NamedTuple):
    """What a command line asks for."""

    mode: str
    config: ml_collections.ConfigDict
    workdir: Path
    flags: flags.FlagValues  # checkpoint, split, output, ... (FLAGS)


def parse(argv: Sequence[str]) -> Arguments | None:
    """The arguments of `argv`, or None after --help; raises InputError, in one sentence, for what cannot be meant."""
    if any(argument in ('--help', '-h', '-help', '--helpfull', '-?') for argument in argv[1:]):
        print(help_text())
        return None
    values, ordered = flags.FlagValues(), _arrange(argv)
    before, sys.argv = sys.argv, ordered  # config_flags looks for --config.field=value in sys.argv
    try:
        extra = _define_flags(values)(ordered)[1:]
        workdir = Path(values.workdir or default_workdir(values.config))
    except AttributeError as error:
        raise InputError(_unknown_field(argv, error)) from error
    except (flags.Error, OSError, SyntaxError, TypeError, ValueError) as error:
        raise InputError(_one_sentence(error)) from error
    finally:
        sys.argv = before
    if extra:
        raise InputError(f'{extra[0]!r} is not a flag; every option begins with two dashes (--help lists them).')
    flags.FLAGS.mark_as_parsed()  # Grain's workers ask for this
    workdir = Path(_at_home('--workdir', str(workdir)))
    config = _layer(values, values.config, workdir)
    _expand_paths(values, config)
    _check_numbers(config)
    _check_flags(values, config)
    return Arguments(values.mode, config, workdir, values)


def default_workdir(config: ml_collections.ConfigDict) -> Path:
    """runs/<config.name>; for your own photos with the name of their folder, so that two catalogs do not share one."""
    if config.data.name == 'catalog' and re.fullmatch(r'catalog(_\w+)?', config.name):
        return Path('runs') / f'{config.name}-{Path(config.data.manual_dir).expanduser().resolve().name}'
    return Path('runs') / config.name


def _arrange(argv: Sequence[str]) -> list[str]:
    """`argv` as config_flags wants it: --config before every --config.field=value, and a,b as a Python tuple."""
    first, rest = [], list(argv[1:])
    for place, argument in enumerate(rest):
        name, equals, value = argument.partition('=')
        if name.lstrip('-') == 'config.data.attributes':
            if not equals and place + 1 < len(rest):
                value = rest.pop(place + 1)
            names = [part.strip(' \'"') for part in value.strip('()[]').split(',')]
            rest[place] = f'{name}={tuple(part for part in names if part)!r}'
    for place, argument in enumerate(rest):
        if re.fullmatch(r'--?config(=.*)?', argument):
            width = 1 if '=' in argument else 2
            first, rest = rest[place : place + width], rest[:place] + rest[place + width :]
            break
    return [argv[0], *first, *rest]


def _define_flags(values: flags.FlagValues) -> flags.FlagValues:
    config_flags.DEFINE_config_file('config', str(DEFAULT_CONFIG), lock_config=True, flag_values=values)
    flags.DEFINE_enum('mode', 'train', list(MODES), 'what to do', flag_values=values)
    flags.DEFINE_string('workdir', None, 'folder of the run', flag_values=values)
    flags.DEFINE_string('checkpoint', 'best', 'best, latest or a step', flag_values=values)
    for name in PATHS:
        flags.DEFINE_string(name, None, FLAGS[name], flag_values=values)
    for name in ('heatmaps', 'strict'):
        flags.DEFINE_boolean(name, False, FLAGS[name], flag_values=values)
    flags.DEFINE_enum('format', 'jax', ['jax', 'torch'], FLAGS['format'], flag_values=values)
    flags.DEFINE_enum('split', 'test', ['valid', 'test'], 'split to evaluate', flag_values=values)
    return values


def _layer(values: flags.FlagValues, config: ml_collections.ConfigDict, workdir: Path) -> ml_collections.ConfigDict:
    """What the workdir remembers lies between a default config file and --config.field=value; an explicit --config wins."""
    overrides = config_flags.get_override_values(values['config'])
    remembered = _read_remembered(workdir / 'config.json')
    if remembered is None:
        return config
    if values['config'].using_default_value:
        given, config = config, config.copy_and_resolve_references()
        _fill(config, remembered, workdir / 'config.json')
        for field in overrides:
            _assign(config, field, _look_up(given.to_dict(), field))
    _say_differences(config, remembered, workdir)
    return config


def _check_flags(values: flags.FlagValues, config: ml_collections.ConfigDict) -> None:
    """Each mode has its own flags; one that would say nothing is refused."""
    for name, modes in MODES_OF.items():
        if values[name].present and values.mode not in modes:
            raise InputError(f'--{name} goes with --mode {" or ".join(modes)}, not with {values.mode}.')
    for name in NEEDED.get(values.mode, ()):
        if not values[name].value:
            raise InputError(f'--mode {values.mode} needs --{name}: {FLAGS[name]}.')
    if values.darn_urls == '':  # as a shell's unset variable leaves it: nothing would be fetched
        raise InputError('--darn_urls is empty; name the list of URLs.')
    if values.darn_urls is not None and config.data.name != 'darn':
        raise InputError('--darn_urls goes with --mode prepare --config configs/darn.py.')


def _expand_paths(values: flags.FlagValues, config: ml_collections.ConfigDict) -> None:
    """Flags with `~` at the front, which a shell leaves as it is behind `=`; fields are expanded where they are used."""
    for name in PATHS:
        if values[name].value:
            values[name].value = _at_home(f'--{name}', values[name].value)
    for field in ('data.dir', 'data.manual_dir', 'init.trunk'):
        _at_home(f'config.{field}', _look_up(config.to_dict(), field))


def _at_home(where: str, path: str) -> str:
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise InputError(f'{where}: {path!r} names a home that is not there; write the folder in full.') from error


def _check_numbers(config: ml_collections.ConfigDict) -> None:
    """Sizes, periods and rates are above zero, but for the few that may be zero."""
    for field, value in _flatten(config.to_dict()).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        least = 'zero or more' if field in MAY_BE_ZERO else 'more than zero'
        if not (value > 0 or (value == 0 and field in MAY_BE_ZERO)):
            raise InputError(f'config.{field} is {value}; give it {least}.')
    if config.data.jitter >= 1:
        raise InputError(
            f'config.data.jitter is {config.data.jitter}, which would cut everything away; give it less than 1.'
        )


def _read_remembered(path: Path) -> dict | None:
    try:
        remembered = json.loads(path.read_text())
        if not isinstance(remembered, dict):
            raise ValueError('no object')
        return remembered
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f'{path} is not readable as JSON ({error}); mend it, or name another --workdir.') from error


def _flatten(tree: dict, prefix: str = '') -> dict:
    flat = {}
    for name, value in tree.items():
        flat |= _flatten(value, f'{prefix}{name}.') if isinstance(value, dict) else {prefix + name: value}
    return flat


def _look_up(tree: dict, field: str):
    return _flatten(tree)[field]


def _assign(config: ml_collections.ConfigDict, field: str, value) -> None:
    *groups, name = field.split('.')
    for group in groups:
        config = config[group]
    config[name] = tuple(value) if isinstance(value, list) else value


def _fill(config: ml_collections.ConfigDict, remembered: dict, path: Path) -> None:
    known = _flatten(config.to_dict())
    for field, value in _flatten(remembered).items():
        if field not in known:
            print(f'{path}: field {field} is of another version and ignored')
            continue
        try:
            _assign(config, field, value)
        except TypeError as error:
            raise InputError(f'{path}, field {field}: {_one_sentence(error)}') from error


def _say_differences(config: ml_collections.ConfigDict, remembered: dict, workdir: Path) -> None:
    now, before = _flatten(json.loads(config.to_json())), _flatten(remembered)
    for field in sorted(now.keys() & before.keys()):
        if now[field] != before[field]:
            print(f'config.{field} is {now[field]!r}; {workdir} had {before[field]!r}')


def _unknown_field(argv: Sequence[str], error: AttributeError) -> str:
    """The sentence for a misspelt field, with the nearest that exists."""
    fields = [field for field, _ in config_fields()]
    for argument in argv[1:]:
        match = re.match(r'--?config\.([^=]+)', argument)
        if match and match[1] not in fields:
            last = {field.rpartition('.')[2]: field for field in fields}
            near = difflib.get_close_matches(match[1], fields, 1, 0.75)
            near = near or [last[name] for name in difflib.get_close_matches(match[1].rpartition('.')[2], last, 1)]
            remedy = f'did you mean --config.{near[0]}?' if near else '--help lists the fields.'
            return f'config has no field {match[1]!r}; {remedy}'
    return f'The config file asks for a field that configs/common.py does not have: {_one_sentence(error)}'


def _one_sentence(error: Exception) -> str:
    text = str(error).strip()
    missing = re.search(r'Attempted \[[^]]*]:\s+(\S+)\s', text)
    if missing:
        return f'There is no config file {missing[1]}; name one like configs/{config_names()[0]}.py.'
    return ' '.join(text.split('\n')[-1 if 'Traceback' in text else 0 :]).strip()


def config_fields() -> list[tuple[str, str]]:
    """Every field of configs/common.py as ('data.name', "'fashionai'  # what it means"), read from its source."""
    path, groups, fields = HERE / 'configs' / 'common.py', {'config': ''}, []
    lines = path.read_text().splitlines()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        owner, name = node.targets[0].value.id, node.targets[0].attr
        field = groups[owner] + name
        if len(node.targets) == 2:  # config.data = data = ConfigDict()
            groups[node.targets[1].id] = field + '.'
        else:
            fields.append((field, lines[node.lineno - 1].partition(' = ')[2]))
    return fields


def config_names() -> list[str]:
    """The config files that --config can name."""
    return sorted(path.stem for path in (HERE / 'configs').glob('*.py') if path.stem not in NO_CONFIGS)


def help_text() -> str:
    """What --help prints: modes, flags and every config field with its comment."""
    lines = [
        'usage: python main.py [--config configs/NAME.py[:VARIANT]] [--mode MODE] [--workdir DIR] [--config.FIELD=VALUE ...]'
    ]
    lines += ['', 'modes:', *(f'  {mode:<10}{does}' for mode, does in MODES.items())]
    lines += [
        '', 'flags:',
        f'  --config            a file of configs/ ({", ".join(config_names())}); default configs/fashionai.py',
        '  --workdir           folder of the run; default runs/<config.name>',
        *(f'  --{name:<18}{meaning}' for name, meaning in FLAGS.items()),
        '', 'fields, as --config.FIELD=VALUE (values shown are those of configs/common.py; a config file changes some):',
    ]  # fmt: skip
    for field, text in config_fields():
        value, _, meaning = text.partition('  # ')
        lines.append(f'  {field:<28}{value:<16}{meaning}')
    return '\n'.join(lines)
