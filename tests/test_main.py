"""main.py: exit statuses, one sentence on stderr, and runs that signals stop."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from subprocess import PIPE
from unittest.mock import Mock

import pytest
from PIL import Image

import main
from asen_jax import files
from asen_jax.errors import InputError
from cli import command_line
from tests.conftest import ROOT
from tests.training.test_loop import arrays_of, assert_same_arrays

ENVIRONMENT = os.environ | {'XLA_FLAGS': '--xla_backend_optimization_level=0'}  # compiles fast; no fake devices
CATALOG = ('--config', str(ROOT / 'configs' / 'catalog.py') + ':scratch', '--config.data.manual_dir=shop')
SMALL = '--config.data.image_size=16 --config.data.num_triplets=160 --config.model.resnet.width=4'
STEPS = '--config.train.batch_size=16 --config.train.num_epochs=2 --config.train.log_every_steps=5'
COMMAND = (*CATALOG, *SMALL.split(), *STEPS.split(), '--config.train.save_every_steps=4')


def start(folder, *arguments):
    command = [sys.executable, '-u', str(ROOT / 'main.py'), *arguments]
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=PIPE, stderr=PIPE, text=True, process_group=0)


def finish(process):
    stdout, stderr = process.communicate(timeout=300)
    return process.returncode, stdout, stderr


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc')
def test_the_program_starts_again_with_huge_pages(tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(
        "import os; print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), flush=True)"
    )
    environment = {name: value for name, value in ENVIRONMENT.items() if name != 'GLIBC_TUNABLES'}
    environment['PYTHONPATH'] = str(tmp_path)
    command = [sys.executable, str(ROOT / 'main.py'), '--help']
    lines = subprocess.run(command, env=environment, capture_output=True, text=True).stdout.splitlines()
    pid, before = lines[0].split()
    assert (before, lines[1]) == ('None', f'{pid} glibc.malloc.hugetlb=1')
    assert lines[2].startswith('usage')
    other = [sys.executable, '-c', f'import runpy; runpy.run_path({command[1]!r}, run_name="__main__")', '--help']
    lines = subprocess.run(other, env=environment, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    assert lines[0].endswith('None') and lines[1].startswith('usage')  # a notebook would be started again


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A catalog of plain red and green photos, in the current folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'shop'
    folder.mkdir()
    with (folder / 'labels.csv').open('w') as file:
        file.write('path,color\n')
        for number in range(80):
            color = ('red', 'green')[number % 2]
            Image.new('RGB', (12, 16), color).save(folder / f'{number}.jpg')
            file.write(f'{number}.jpg,{color}\n')
    return folder


def wait_for_a_checkpoint(workdir):
    """Until the run has saved something, which may take minutes on a busy machine."""
    for _ in range(6000):
        if any(path.name.isdigit() for path in (workdir / 'checkpoints' / 'latest').glob('*')):  # others are unfinished
            return
        time.sleep(0.05)


def test_a_killed_and_then_hung_up_run_ends_like_an_unbroken_one(shop):
    """SIGKILL saves nothing, so the run repeats steps; SIGHUP saves first. The same command continues after both."""
    folder = shop.parent
    process = start(folder, *COMMAND, '--workdir=stopped')
    wait_for_a_checkpoint(folder / 'stopped')
    process.kill()
    process.communicate()
    assert not (folder / 'stopped' / 'eval_test.json').exists()

    process = start(folder, *COMMAND, '--workdir=stopped', '--config.data.num_workers=1')
    while not (line := process.stdout.readline()).startswith('resuming stopped after step'):
        assert line, process.stderr.read()
    os.killpg(process.pid, signal.SIGHUP)  # what a terminal sends when it closes, to workers, too
    status, _, stderr = finish(process)
    assert status == 128 + signal.SIGHUP
    assert stderr.startswith('main.py: Stopped by SIGHUP after saving step ') and stderr.count('\n') == 1

    assert finish(start(folder, *COMMAND, '--workdir=stopped'))[0] == 0
    status, stdout, stderr = finish(start(folder, *COMMAND))
    assert (status, stderr) == (0, '')
    unbroken = folder / 'runs' / 'catalog_scratch-shop'
    (step, parameters), (last, expected) = arrays_of(folder / 'stopped'), arrays_of(unbroken)
    assert step == last == 20
    assert_same_arrays(parameters, expected)
    steps = [json.loads(line)['step'] for line in (folder / 'stopped' / 'metrics.jsonl').read_text().splitlines()]
    assert steps == [5, 10, 10, 15, 20, 20]
    result = json.loads((unbroken / 'eval_test.json').read_text())
    assert result['map']['overall'] > result['chance_map']['overall'] > 0
    assert f'{100 * result["chance_map"]["overall"]:.2f}' in stdout
    assert main.run(['main.py', '--mode=eval', '--workdir=stopped', '--split=valid']) == 0  # remembers its config
    assert (folder / 'stopped' / 'eval_valid.json').exists()


def test_help_exits_with_0_without_importing_jax(tmp_path):
    code = 'import main, sys; print("status", main.run(["main.py", "--help"]), "jax" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith('status 0 False\n')


def test_invalid_arguments_exit_with_2_and_no_traceback(tmp_path):
    status, stdout, stderr = finish(start(tmp_path, '--config.learning_rte=1'))
    assert (status, stdout, stderr.count('\n')) == (2, '', 1)
    assert stderr.startswith("main.py: config has no field 'learning_rte'")


def run(capsys, *arguments):
    """Exit status, stdout and stderr of a command, run in this process."""
    status = main.run(['main.py', '--mode=prepare', *arguments])
    said = capsys.readouterr()
    return status, said.out, said.err


UNUSABLE = {
    '': 'data/meta.json is missing: data_builders/fashionai/README.md says',
    f'{CATALOG[0]} {CATALOG[1]} --config.data.manual_dir=empty': 'empty/labels.csv does not exist',
    f'{" ".join(CATALOG)} --config.data.attributes=colour': "'colour'",
    '--workdir=file': 'file/config.json is not a JSON object ([Errno 20] Not a directory: ',
}


@pytest.mark.parametrize('options,sentence', UNUSABLE.items())
def test_unusable_data_exits_with_2_and_one_sentence(shop, capsys, options, sentence):
    (shop.parent / 'empty').mkdir()
    (shop.parent / 'file').touch()
    status, _, stderr = run(capsys, *options.split())
    assert status == 2
    assert stderr.startswith('main.py: ') and sentence in stderr and stderr.count('\n') == 1
    assert sorted(path.name for path in shop.parent.iterdir()) == ['empty', 'file', 'shop']


def test_a_damaged_photo_is_an_error_or_skipped(shop, capsys):
    damaged = shop / '7.jpg'
    damaged.write_bytes(damaged.read_bytes()[:300])
    status, _, stderr = run(capsys, *CATALOG)
    assert status == 2 and '7.jpg' in stderr and '--config.data.broken=skip' in stderr
    status, stdout, stderr = run(capsys, *CATALOG, '--config.data.broken=skip')
    assert (status, stderr) == (0, '') and 'skipped: 1 photos\n  7.jpg: broken' in stdout


def test_records_cannot_be_replaced_while_they_are_evaluated(config, tmp_path, monkeypatch):
    def replace(config, network, records, *_):
        with (
            pytest.raises(InputError, match='being read'),
            files.lock(f'{records.directory}/../.reading', 'being read'),
        ):
            pass
        evaluated.append(records)

    evaluated, flags = [], Mock(workdir=None, distributed=False)
    monkeypatch.setattr('asen_jax.network.load_network', Mock())
    monkeypatch.setattr('asen_jax.evaluation.run.evaluate_network', replace)
    main.dispatch(command_line.Arguments('eval', config, tmp_path, flags))
    assert evaluated


def test_characters_that_the_output_cannot_encode_are_replaced(monkeypatch):
    written = io.BytesIO()
    with io.TextIOWrapper(written, 'ascii') as output:
        monkeypatch.setattr(sys, 'stdout', output)
        monkeypatch.setattr(main, 'dispatch', lambda arguments: print('grün'))
        assert main.run(['main.py']) == 0
        assert written.getvalue() == b'gr?n\n'


def run_unread(*arguments):
    """Exit status and stderr of a command whose output nobody reads."""
    unread, output = os.pipe()
    os.close(unread)
    buffered = {name: value for name, value in os.environ.items() if name != 'PYTHONUNBUFFERED'}
    command = [sys.executable, ROOT / 'main.py', *arguments]
    done = subprocess.run(command, stdout=output, stderr=PIPE, text=True, env=buffered)
    os.close(output)
    return done.returncode, done.stderr


def test_a_closed_output_ends_a_command_quietly(shop, capsys):
    assert run_unread('--help') == (141, '')
    assert run(capsys, *CATALOG)[0] == 0
    assert run_unread('--mode=prepare', *CATALOG) == (141, '')  # which logs that it uses these records
    status, stderr = run_unread('--mode=embed')
    assert status == 2 and stderr.count('\n') == 1


def test_a_full_disk_is_named_even_if_the_system_does_not(monkeypatch, capsys):
    monkeypatch.setattr(main, 'dispatch', Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert run(capsys) == (2, '', 'main.py: data/records or the output: No space left on device.\n')
    assert main.run(['main.py', '--mode=embed', '--images=a.jpg', '--output=v.npz']) == 2
    assert capsys.readouterr().err == 'main.py: v.npz or the output: No space left on device.\n'
    assert main.run(['main.py', '--workdir=w']) == 2
    assert capsys.readouterr().err == 'main.py: w or the output: No space left on device.\n'


FIXABLE = {
    'runs/mine/metrics.jsonl': errno.EACCES,
    'runs': errno.ENOTDIR,  # could not be created for runs/mine
    'link/a.jpg': errno.EACCES,
    'elsewhere/a.jpg': errno.EACCES,  # what link/a.jpg is
    'v.npz.parts/.lock': errno.EACCES,
    '/tmp/other': errno.ENOSPC,
}
BUGS = [
    FileNotFoundError(errno.ENOENT, 'No such file or directory', str(ROOT / 'asen_jax' / 'gone.html')),
    PermissionError(errno.EACCES, 'Permission denied', 'data_builders/other.json'),
    OSError(errno.EBADF, 'Bad file descriptor'),
    TimeoutError('no answer'),
]
EMBED = ('main.py', '--mode=embed', '--images=link', '--output=v.npz', '--workdir=runs/mine')


@pytest.fixture
def fail_with(monkeypatch, tmp_path):
    """Lets every mode raise an error, in an empty folder; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'link').symlink_to('elsewhere')

    def fail(error):
        monkeypatch.setattr(main, 'dispatch', Mock(side_effect=error))
        return main.run(list(EMBED))

    return fail


@pytest.mark.parametrize('path,number', FIXABLE.items())
def test_an_error_about_a_file_of_the_command_is_one_sentence(fail_with, capsys, path, number):
    assert fail_with(OSError(number, os.strerror(number), path)) == 2
    assert capsys.readouterr().err == f'main.py: {path}: {os.strerror(number)}.\n'


@pytest.mark.parametrize('error', BUGS, ids=repr)
def test_an_error_about_any_other_file_is_a_bug(fail_with, capsys, error):
    assert fail_with(error) == 1
    assert 'Traceback' in capsys.readouterr().err


def test_ctrl_c_exits_with_130(monkeypatch, capsys):
    monkeypatch.setattr(main, 'dispatch', Mock(side_effect=KeyboardInterrupt))
    assert run(capsys) == (130, '', 'main.py: interrupted; run the same command again to continue.\n')
