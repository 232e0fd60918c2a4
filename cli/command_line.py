"""The command line: flags, config layers and --help.

A config has four layers, and later ones win: the values of the default config file, the workdir's config.json, the
config file that --config names, and --config.FIELD=VALUE.
"""

import difflib
import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import tuple_parser

from asen_jax import fields
from asen_jax.errors import InputError

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
HELP_FLAGS = {'--help', '-help', '-h', '-?', '--helpfull'}
USAGE = 'python main.py [--config configs/NAME.py[:VARIANT]] [--mode MODE] [--workdir DIR] [--config.FIELD=VALUE ...]'
PATH_FIELDS = ('data.dir', 'data.manual_dir', 'init.trunk', 'init.workdir')
PROCESS_FLAGS = ('distributed', 'coordinator', 'num_processes', 'process_id')
EVAL_FLAGS = ('checkpoint', 'split', *PROCESS_FLAGS)


class Mode(NamedTuple):
    """What a mode does, and the flags that belong to it."""

    meaning: str
    needs: tuple[str, ...] = ()
    accepts: tuple[str, ...] = ()


MODES = {
    'train': Mode('prepare if needed, train or resume, evaluate on valid each epoch, test the best', (), PROCESS_FLAGS),
    'eval': Mode('evaluate a checkpoint; print the table, write eval_<split>.json', (), EVAL_FLAGS),
    'report': Mode('evaluate, and also write report.html', (), EVAL_FLAGS),
    'prepare': Mode('only build the records; print a summary, write prepare.json', (), ('darn_urls',)),
    'import': Mode('turn a PyTorch checkpoint of ASEN or CSN into a checkpoint', ('torch_checkpoint',)),
    'export': Mode('write a program with weights, or a state dict', ('output',), ('checkpoint', 'format')),
    'embed': Mode('write the vectors of any photos', ('images', 'output'), ('checkpoint', 'heatmaps', 'strict')),
    'index': Mode(
        'add, update, and delete photos so that a gallery matches a list',
        ('images', 'gallery'),
        ('checkpoint', 'strict', 'engine', 'workers'),
    ),
    'search': Mode(
        'print and draw the photos of a gallery that are nearest to one',
        ('gallery', 'query', 'attribute'),
        ('k', 'where', 'json', 'output'),
    ),
    'serve': Mode('serve a web page and an API over a gallery', ('gallery',), ('host', 'port')),
}
FLAGS = {  # what it takes (a type, choices, or the lowest and highest number), default, meaning
    'mode': (list(MODES), 'train', 'what to do'),
    'workdir': (Path, None, 'folder of the run; default runs/<config.name>, for a catalog with the name of its folder'),
    'darn_urls': (Path, None, 'list of URLs: download the photos of DARN that are missing, then prepare'),
    'torch_checkpoint': (Path, None, 'file to import: .pth.tar, .pth or .safetensors'),
    'output': (Path, None, 'folder for the export, .npz file for the vectors, or .jpg file for what a search finds'),
    'images': (Path, None, 'photos to embed: a folder, a quoted glob, a list of paths, or a .csv with a "path" column'),
    'gallery': (Path, None, 'folder of the gallery, or s3://BUCKET/NAME'),
    'query': (Path, None, 'photo to search with'),
    'checkpoint': (str, 'best', 'best, latest or the number of a step'),
    'split': (['valid', 'test'], 'test', 'split to evaluate'),
    'format': (['jax', 'torch'], 'jax', 'JAX program or PyTorch state dict'),
    'heatmaps': (bool, False, 'also write where the network looks in each photo'),
    'attribute': (str, None, 'attribute to search by, or several with weights: sleeve:2,neckline'),
    'k': ((1, None), 20, 'number of photos to find'),
    'where': (str, None, "condition in SQL on the CSV's columns: \"color = 'red'\""),
    'json': (bool, False, 'print what was found as JSON'),
    'host': (str, '127.0.0.1', 'address to serve on; docs/gallery.md says how to let other machines in'),
    'port': ((0, 65535), 8000, 'port to serve on'),
    'strict': (bool, False, 'stop at an unreadable photo instead of skipping it'),
    'engine': (['local', 'ray'], 'local', 'what embeds the photos'),
    'workers': ((1, None), None, 'workers of --engine=ray; default: one per GPU of the cluster, or per machine'),
    'compilation_cache': (bool, True, 'keep compiled programs in ~/.cache/asen_jax: the next command starts sooner'),
    'distributed': (bool, False, 'this is one of several processes of a run; see docs/operations.md'),
    'coordinator': (str, None, '--distributed: HOST:PORT of process 0'),
    'num_processes': ((1, None), None, '--distributed: number of processes'),
    'process_id': ((0, None), None, '--distributed: number of this process, from 0'),
}


class Arguments(NamedTuple):
    """A parsed command line."""

    mode: str
    config: ConfigDict
    workdir: Path
    flags: flags.FlagValues

    @property
    def paths(self) -> list[Path]:
        """The files and folders that the command reads or writes."""
        named = [self.flags[name].value for name, (kind, *_) in FLAGS.items() if kind is Path]
        named += [self.config[name] for name in PATH_FIELDS]
        return [self.workdir, *(_expand_home(path) for path in named if path)]

    @property
    def written(self) -> str:
        """The file or folder that the mode writes."""
        return (
            self.flags.output
            or self.flags.gallery
            or (self.config.data.dir if self.mode == 'prepare' else str(self.workdir))
        )


def parse(argv: Sequence[str]) -> Arguments | None:
    """The arguments in `argv`, or None after printing --help; raises InputError for invalid ones."""
    if HELP_FLAGS.intersection(argv[1:]):
        print(help_text())
        return None
    _refuse_unknown_fields(argv)
    try:
        values = parse_flags(argv)
        workdir = Path(values.workdir or default_workdir(values.config))
    except (AttributeError, LookupError) as error:
        raise InputError(
            f'The config file uses a field that asen_jax/fields.py does not have: {_one_line(error)}'
        ) from error
    except (flags.Error, OSError, SyntaxError, TypeError, ValueError) as error:
        raise InputError(_one_line(error)) from error
    if values.mode not in ('search', 'serve'):  # which read nothing but the gallery
        _apply_workdir(values, workdir)
    fields.check_fields(values.config)
    for field in PATH_FIELDS:
        _expand_home(values.config[field])  # only a check: the config keeps its ~
    _check_mode(values)
    return Arguments(values.mode, values.config, workdir, values)


def default_workdir(config: ConfigDict) -> Path:
    """runs/<config.name>; configs/catalog.py appends the name of the catalog's folder, so that catalogs do not mix."""
    name = config.name
    if config.data.name == 'catalog' and re.fullmatch(r'catalog(_\w+)?', name):
        name += '-' + _expand_home(config.data.manual_dir).resolve().name
    return Path('runs') / name


def parse_flags(argv: Sequence[str]) -> flags.FlagValues:
    """All flags in `argv`, in any order; `.config` has the config file's values with --config.FIELD=VALUE applied."""
    first_pass = flags.FlagValues()  # only finds --config, which config_flags wants before --config.FIELD=VALUE
    flags.DEFINE(PathParser(), 'config', None, 'config file', flag_values=first_pass)
    argv = first_pass(list(argv), known_only=True)
    if first_pass.config:
        path = first_pass.config.partition(':')[0]
        if not Path(path).is_file():
            raise InputError(f'There is no config file {path}; choose one such as configs/catalog.py.')
        argv.insert(1, f'--config={first_pass.config}')
    values = define_flags(argv)
    positional = values(argv)[1:]
    if positional:
        raise InputError(f'{positional[0]!r} is not a flag; flags begin with two dashes (see --help).')
    return values


def define_flags(argv: Sequence[str]) -> flags.FlagValues:
    """All flags, not yet parsed; config_flags defines one for each --config.FIELD in `argv`."""
    values, default = flags.FlagValues(), str(CONFIGS / 'fashionai.py')
    names = ', '.join(sorted({path.stem for path in CONFIGS.glob('*.py')} - {'__init__', 'common', 'variants'}))
    config_flags.register_flag_parser_for_type(tuple, NamesParser())
    about = f'file in configs/: {names}'
    config_flags.DEFINE_config_file('config', default, about, flag_values=values, sys_argv=list(argv))
    path = functools.partial(flags.DEFINE, PathParser())
    for name, (kind, *how) in FLAGS.items():
        if isinstance(kind, list):
            flags.DEFINE_enum(name, how[0], kind, how[1], flag_values=values)
        elif isinstance(kind, tuple):
            flags.DEFINE_integer(name, *how, *kind, flag_values=values)
        else:
            {str: flags.DEFINE_string, bool: flags.DEFINE_boolean, Path: path}[kind](name, *how, flag_values=values)
    return values


class PathParser(flags.ArgumentParser):
    """Expands a leading ~, which shells leave alone after an equals sign, and keeps both slashes of s3://BUCKET."""

    def parse(self, argument: str) -> str:
        if not argument:
            raise ValueError('the path is empty; write one, or omit the flag.')
        return argument if argument.startswith('s3://') else str(_expand_home(argument))


class NamesParser(tuple_parser.TupleParser):
    """Splits `a,b` into ('a', 'b'); Python's brackets and quotes are allowed."""

    def parse(self, argument: str | tuple) -> tuple:
        if isinstance(argument, tuple):
            return argument
        inside = argument[1:-1] if argument[:1] + argument[-1:] in ('()', '[]') else argument
        names = [name.strip(' \'"') for name in inside.split(',')]
        return tuple(name for name in names if name)


def _expand_home(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f'{path!r} names a home folder that does not exist; write the path in full.') from error


def _apply_workdir(values: flags.FlagValues, workdir: Path) -> None:
    """Apply the workdir's config.json unless --config was given, and print where the config differs from it."""
    config, path = values.config, workdir / 'config.json'
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f'it is {content!r:.40}')
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise InputError(f'{path} is not a JSON object ({error}); fix it, or name another --workdir.') from error
    remembered = fields.flatten(content)
    if values['config'].using_default_value:
        known = fields.flatten(config.to_dict())
        for field in sorted(remembered.keys() - known):
            print(f'{path}: ignored {field}, which is not a field of this version')
        try:
            config.update_from_flattened_dict({field: remembered[field] for field in remembered.keys() & known})
        except TypeError as error:
            raise InputError(f'{path}: {error}; fix it, or name another --workdir.') from error
        config.update_from_flattened_dict(config_flags.get_override_values(values['config']))
    for field, value in fields.flatten(json.loads(config.to_json())).items():
        if value != remembered.get(field, value):
            print(f'config.{field} is {value!r}; {workdir} had {remembered[field]!r}')


def _check_mode(values: flags.FlagValues) -> None:
    """Refuse flags that the mode would ignore, and demand those that it needs."""
    for name in values:
        modes = [mode for mode in MODES if name in MODES[mode].needs + MODES[mode].accepts]
        if modes and values.mode not in modes and values[name].present:
            known = ' or '.join(filter(None, [', '.join(modes[:-1]), modes[-1]]))
            raise InputError(f'--{name} goes with --mode {known}, not with {values.mode}.')
    for name in MODES[values.mode].needs:
        if values[name].value is None:
            raise InputError(f'--mode {values.mode} needs --{name}: {values[name].help}.')
    if values.workers and values.engine != 'ray':
        raise InputError('--workers goes with --engine=ray.')
    if not values.distributed and any(values[name].present for name in PROCESS_FLAGS[1:]):
        raise InputError(f'{", ".join(f"--{name}" for name in PROCESS_FLAGS[1:])} go with --distributed.')
    if values.darn_urls and values.config.data.name != 'darn':
        raise InputError('--darn_urls goes with --mode prepare --config configs/darn.py.')


def _refuse_unknown_fields(argv: Sequence[str]) -> None:
    """Refuse --config.FIELD if FIELD is misspelt, or a whole group, and name the closest field that exists."""
    names = [field.name for field in fields.TABLE]
    by_name = {name.rpartition('.')[2]: name for name in reversed(names)}
    by_name |= {name.partition('.')[0]: name for name in reversed(names)} | {name: name for name in names}
    for argument in argv[1:]:
        match = re.match(r'--?(?:no)?config\.([^=]+)', argument)
        if match and match[1] not in names:
            closest = difflib.get_close_matches(match[1], by_name, 1)
            remedy = f'did you mean --config.{by_name[closest[0]]}?' if closest else '--help lists the fields.'
            raise InputError(f'config has no field {match[1]!r}; {remedy}')


def _one_line(error: Exception) -> str:
    """The message on one line; if config_flags put a traceback into it, only its last line."""
    lines = str(error).strip().split('\n')
    return lines[-1] if 'Traceback' in str(error) else ' '.join(lines)


def help_text() -> str:
    """What --help prints: modes, flags and every config field with its meaning."""
    lines = [f'usage: {USAGE}', '', 'modes:']
    for name, mode in MODES.items():
        own = [f'--{flag} (required)' for flag in mode.needs] + [f'--{flag}' for flag in mode.accepts]
        lines.append(f'  {name:<10}{mode.meaning}')
        if own:
            lines.append(f'{"":12}{", ".join(own)}')
    lines += ['', define_flags([]).module_help(__name__).strip().replace(__name__, 'flags'), '']
    lines.append('fields, as --config.FIELD=VALUE (with their defaults, some of which a config file changes):')
    for name, default, _, meaning, allowed in fields.TABLE:
        choices = f'{" | ".join(map(str, allowed))}: ' if isinstance(allowed, list) else ''
        lines.append(f'  {name:<36}{default!r:<16}{choices}{meaning}')
    return '\n'.join(lines)
