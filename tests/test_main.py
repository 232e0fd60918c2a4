"""`python main.py` as its user runs it: exit status, one sentence on stderr, no traceback."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.training.test_loop import arrays_of, assert_same_arrays


def command(*arguments):
    return [sys.executable, str(ROOT / 'main.py'), *map(str, arguments)]


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}  # no faked devices: a user's


def run(folder, *arguments):
    return subprocess.run(
        command(*arguments), cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )


def assert_one_sentence(done, *parts):
    assert done.returncode == 2, done.stderr
    assert done.stderr.count('\n') == 1
    assert done.stderr.startswith('main.py: ')
    for part in parts:
        assert part in done.stderr, done.stderr


@pytest.fixture
def shop(tmp_path):
    """A small catalog."""
    (tmp_path / 'shop').mkdir()
    with (tmp_path / 'shop' / 'labels.csv').open('w', newline='') as file:
        rows = csv.writer(file)
        rows.writerow(['path', 'color'])
        for number in range(80):
            name = ('red', 'green')[number % 2]
            Image.new('RGB', (12, 16), name).save(tmp_path / 'shop' / f'{number}.jpg')
            rows.writerow([f'{number}.jpg', name])
    return tmp_path / 'shop'


CATALOG = ('--config', ROOT / 'configs' / 'catalog.py', '--config.data.manual_dir=shop')
TINY = (
    '--config.data.image_size=32', '--config.model.trunk_width=8', '--config.data.num_triplets=64',
    '--config.train.batch_size=16', '--config.train.num_epochs=2',
)  # fmt: skip


def test_a_catalog_from_folder_to_figures(shop):
    done = run(shop.parent, *CATALOG, *TINY)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    (workdir,) = (shop.parent / 'runs').iterdir()
    assert workdir.name.startswith('catalog-shop-')
    result = json.loads((workdir / 'eval_test.json').read_text())
    assert result['map']['overall'] == 1  # two plain colors
    assert 0 < result['chance_map']['overall'] < 1
    assert f'{100 * result["chance_map"]["overall"]:.2f}' in done.stdout
    again = run(shop.parent, '--mode', 'eval', '--workdir', workdir, '--split', 'valid')
    assert again.returncode == 0, again.stderr
    assert (workdir / 'eval_valid.json').exists()


def wait_for_a_checkpoint(workdir):
    """Until the run has saved something, minutes on a busy machine."""
    for _ in range(6000):
        if any(path.name.isdigit() for path in (workdir / 'checkpoints' / 'latest').glob('*')):  # others are unfinished
            return
        time.sleep(0.05)


def test_a_run_killed_mid_epoch_goes_on_with_the_same_command(shop):
    """SIGKILL saves nothing: the run goes back to its last checkpoint and ends with an unbroken run's parameters."""
    folder = shop.parent
    options = (
        *CATALOG, *TINY, '--config.data.num_triplets=160', '--config.train.save_every_steps=4', '--config.train.log_every_steps=5',
    )  # fmt: skip
    process = subprocess.Popen(command(*options, '--workdir=killed'), cwd=folder, env=ENVIRONMENT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    wait_for_a_checkpoint(folder / 'killed')
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    assert not (folder / 'killed' / 'eval_test.json').exists()
    done = run(folder, *options, '--workdir=killed')
    assert done.returncode == 0, done.stderr
    assert 'resumes killed after step' in done.stdout
    assert run(folder, *options, '--workdir=whole').returncode == 0
    (step, killed), (last, whole) = arrays_of(folder / 'killed'), arrays_of(folder / 'whole')
    assert step == last == 20
    assert_same_arrays(killed, whole)
    steps = [json.loads(line)['step'] for line in (folder / 'killed' / 'metrics.jsonl').read_text().splitlines()]
    assert steps == [5, 10, 10, 15, 20, 20]


def test_sigterm_saves_and_says_so(shop):
    options = (*CATALOG, *TINY, '--config.train.num_epochs=500', '--config.eval.every_epochs=500', '--workdir=w')
    process = subprocess.Popen(command(*options), cwd=shop.parent, env=ENVIRONMENT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    wait_for_a_checkpoint(shop.parent / 'w')
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert said.startswith('main.py: Stopped by SIGTERM after saving step ')
    assert said.count('\n') == 1


def test_a_workdir_that_is_a_file_is_named(shop):
    (shop.parent / 'w').touch()
    assert_one_sentence(run(shop.parent, *CATALOG, *TINY, '--workdir=w'), 'w', 'Not a directory')


@pytest.mark.parametrize('front', [(), ('--config', ROOT / 'configs' / 'fashionai.py')])
def test_missing_data_and_a_misspelt_field(tmp_path, front):
    assert_one_sentence(run(tmp_path, *front), 'data/meta.json', 'data_builders/fashionai/README.md')
    assert_one_sentence(
        run(tmp_path, *front, '--config.learning_rte=1'), 'learning_rte', '--config.optim.learning_rate'
    )
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_a_broken_photo_and_an_unknown_attribute(shop):
    empty = shop.parent / 'empty'
    empty.mkdir()
    folder = shop.parent
    assert_one_sentence(run(folder, *CATALOG[:2], '--config.data.manual_dir=empty'), 'empty', 'labels.csv')
    assert_one_sentence(run(folder, *CATALOG, '--config.data.attributes=colour'), "'colour'", 'color')
    broken = shop / '7.jpg'
    broken.write_bytes(broken.read_bytes()[:300])
    assert_one_sentence(run(folder, *CATALOG), '7.jpg', '--config.data.broken=skip')
    done = run(folder, *CATALOG, '--config.data.broken=skip', '--mode=prepare')
    assert done.returncode == 0, done.stderr
    assert '7.jpg' in done.stdout


def test_help_ends_well(tmp_path):
    done = run(tmp_path, '--help')
    assert done.returncode == 0
    assert 'prepare' in done.stdout
    assert 'optim.learning_rate' in done.stdout
