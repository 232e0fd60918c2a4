"""Eight simulated CPU devices, strict JAX, and the small datasets that tests share."""

import os
import tempfile

# most tests compile small programs for longer than they run them: without optimizations, that takes half the time
FAST = '--xla_backend_optimization_level=0 --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters'
os.environ['XLA_FLAGS'] = f'{FAST} --xla_force_host_platform_device_count=8 {os.environ.get("XLA_FLAGS", "")}'.strip()
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
COMPILED = tempfile.TemporaryDirectory(prefix='compiled-')  # the same small programs are compiled many times
# here, in xdist's workers, and in processes that tests start
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', COMPILED.name)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'

import gc
import signal
from pathlib import Path

import jax
import pytest
import tensorflow_datasets as tfds
from jaxtyping import install_import_hook

install_import_hook('asen_jax', 'beartype.beartype')  # shapes in signatures are checked in every test

from asen_jax import sharding
from asen_jax.data.prepared import open_records
from asen_jax.training.optimizer import make_optimizer, make_schedule
from asen_jax.training.step import create_state, make_train_step
from configs import synthetic
from data_builders import prepare

jax.config.update('jax_numpy_rank_promotion', 'raise')
gc.set_threshold(
    50_000, 20, 100
)  # tracing makes many objects; looking for garbage among them takes a tenth of the time
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, here and in processes that tests start

ROOT = Path(__file__).resolve().parent.parent
SLOW = ('test_loop', 'test_parity', 'test_import_export', 'test_step', 'test_models', 'test_main', 'test_starting')


def pytest_collection_modifyitems(items):
    """Start with the files that take longest, so that no worker is left alone with one of them at the end."""
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


def pytest_collection_finish(session):
    """Leave the objects of all imported modules out of every search for garbage."""
    gc.collect()
    gc.freeze()


def read_split(directory, split):
    """All fields of the records of a split, with images as their original bytes."""
    decoders = {'image': tfds.decode.SkipDecoding()}
    return tfds.builder_from_directory(str(directory)).as_data_source(split, decoders=decoders)


def tiny_config():
    """A network and data small enough to train in a second."""
    config = synthetic.get_config()
    config.data.synthetic.num_photos, config.data.synthetic.photo_size, config.data.image_size = 100, 32, 32
    config.data.num_triplets, config.data.num_workers, config.data.jitter = 32, 0, 0.0
    config.model.resnet.width, config.model.embed_dim = 8, 16
    config.train.batch_size, config.train.num_epochs, config.train.log_every_steps = 8, 2, 2
    config.eval.batch_size, config.eval.every_epochs = 16, 1
    return config


@pytest.fixture
def config(records_root):
    """A fresh tiny config whose records are prepared."""
    config = tiny_config()
    config.data.dir = str(records_root)
    return config


@pytest.fixture(scope='session')
def records_root(tmp_path_factory):
    """The directory of the records that a session's tests share."""
    root = tmp_path_factory.mktemp('records')
    config = tiny_config()
    config.data.dir = str(root)
    prepare.prepare(config)
    return root


@pytest.fixture
def records(config):
    """The tiny records, opened."""
    return open_records(prepare.prepare(config))


def make_step(config, graphdef, params, batch_stats, mesh, steps_per_epoch):
    """A train step on `mesh`, and the state before its first call."""
    optimizer = make_optimizer(config, make_schedule(config, steps_per_epoch), params)
    state = create_state(params, batch_stats, optimizer)
    shardings = sharding.state_shardings(state, mesh)
    step = make_train_step(graphdef, optimizer, config.train, shardings, mesh, config.seed)
    return step, jax.device_put(state, shardings)
