"""Photos per second on one core: from JPEG, as the original loads them, and from the cache of decoded photos.

    python benchmarks/loading.py [--photos 128] [--repeats 9] [--output loading.json]

Draws photos of 200 x 300 and 512 x 512 pixels, prepares them as a catalog, and loads them at 224 pixels. PyTorch (`pip install
torch`) is only needed for the sides that use it.
"""

import os

os.environ.update(JAX_PLATFORMS='cpu', TF_CPP_MIN_LOG_LEVEL='2', OMP_NUM_THREADS='1')

import argparse
import csv
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image
from timing import Timed, Work, fastest, report, take_turns

from asen_jax.data.batches import TripletSource
from asen_jax.data.prepared import Records, open_records
from configs import catalog
from data_builders import prepare

SIZES = ((200, 300), (512, 512))
INPUT, QUALITY = 224, 90
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KEPT_BLOCKS = Image.core.get_blocks_max()  # of memory, as asen_jax.data.images sets it


def draw(folder: Path, width: int, height: int, count: int) -> None:
    """Photos of smooth shapes and noise, and a labels.csv with all of them in train."""
    folder.mkdir()
    rows = []
    for number in range(count):
        rng = np.random.default_rng([width, height, number])
        y, x = np.mgrid[:height, :width] / max(width, height)
        speed, shift = rng.uniform(3, 18, (2, 3)), rng.uniform(0, 6, (2, 3))
        waves = np.sin(x[..., None] * speed[0] + shift[0]) + np.cos(y[..., None] * speed[1] + shift[1])
        pixels = 128 + 50 * waves + rng.normal(0, 8, (height, width, 1))
        name = f'{number:04}.jpg'
        Image.fromarray(np.uint8(pixels.clip(0, 255))).save(folder / name, quality=QUALITY)
        rows.append((name, 'train', ('plain', 'striped')[number % 2]))
    with (folder / 'labels.csv').open('w', newline='') as file:
        csv.writer(file).writerows([('path', 'split', 'pattern'), *rows])


def measure(folder: Path, width: int, height: int, count: int, repeats: int) -> list[Timed]:
    """JPEG loading and loading from the cache, each beside its limit."""
    photos, size = folder / f'{width}x{height}', f'{width} x {height}'
    draw(photos, width, height, count)
    config = catalog.get_config('scratch')
    config.data.manual_dir, config.data.dir = str(photos), str(folder / f'records{width}')
    config.data.image_size, config.data.fit, config.data.jitter = INPUT, 'crop', 0.0
    config.train.loss, config.train.batch_size = 'triplet', 16
    records = open_records(prepare.prepare(config))
    triplets = TripletSource(records, config, range(config.train.batch_size)).table(0)
    triplets = triplets[: -(-count // 48) * 16, :3]  # whole batches
    paths = [photos / f'{number:04}.jpg' for number in range(count)]
    order = [paths[number] for number in triplets.ravel()]
    encoded = [path.read_bytes() for path in order]

    jpeg = load_batches(records, config, len(triplets))
    config.data.cache = 'disk'
    cached = load_batches(records, config, len(triplets))
    sides = {'asen_jax': jpeg, **torch_sides(order), 'decode alone': lambda: [decode(data) for data in encoded]}
    rows = [Work(f'JPEG {size}', 'photos', len(order), sides, limit=fastest(sides['decode alone']))]
    batches = [np.zeros((16, 3, INPUT, INPUT, 3), np.uint8) for _ in range(len(triplets) // 16)]
    sides = {'asen_jax, data.cache=disk': cached, 'asen_jax, JPEG': jpeg}
    copy = fastest(lambda: [batch.copy() for batch in batches])
    rows.append(Work(f'cache {size}', 'photos', len(order), sides, limit=copy))
    return [take_turns(row, repeats) for row in rows]


def load_batches(records: Records, config, num_triplets: int) -> Callable[[], None]:
    """A call that loads the first triplets of an epoch in batches, in this thread."""
    batch_size = config.train.batch_size
    source = TripletSource(records, config, range(batch_size))

    def load() -> None:
        for first in range(0, num_triplets, batch_size):
            np.stack([source[number]['images'] for number in range(first, first + batch_size)])

    return load


def torch_sides(paths: list[Path]) -> dict[str, Callable[[], None]]:
    """The original's loader, and the fastest form of it; nothing without PyTorch.

    Both release the memory of each picture, as Pillow does unless told otherwise.
    """
    try:
        import torch
    except ImportError:
        return {}
    torch.set_num_threads(1)

    def square(path: Path) -> Image.Image:
        """torchvision's Resize and CenterCrop, which do the same with Pillow."""
        with path.open('rb') as file:
            image = Image.open(file).convert('RGB')
        width, height = image.size
        if width <= height:
            width, height = INPUT, int(INPUT * height / width)
        else:
            width, height = int(INPUT * width / height), INPUT
        left, top = round((width - INPUT) / 2), round((height - INPUT) / 2)
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return resized.crop((left, top, left + INPUT, top + INPUT))

    def to_bytes(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()

    def normalized(path: Path) -> torch.Tensor:
        """ToTensor and Normalize."""
        pixels = to_bytes(square(path)).to(torch.float32).div(255).clone()
        mean, deviation = (torch.tensor(each)[:, None, None] for each in (MEAN, DEVIATION))
        return pixels.sub_(mean).div_(deviation)

    def loading(load: Callable[[Path], torch.Tensor]) -> Callable[[], None]:
        def call() -> None:
            Image.core.set_blocks_max(0)
            for first in range(0, len(paths), 48):
                torch.stack([load(path) for path in paths[first : first + 48]])
            Image.core.set_blocks_max(KEPT_BLOCKS)

        return call

    return {
        "the original's loader": loading(normalized),
        'PyTorch, bytes to the device': loading(lambda path: to_bytes(square(path))),
    }


def decode(data: bytes) -> None:
    """Only what libjpeg does."""
    Image.open(io.BytesIO(data)).load()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--photos', type=int, default=128)
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--output', type=Path)
    options = parser.parse_args()
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        timed = [each for size in SIZES for each in measure(Path(folder), *size, options.photos, options.repeats)]
        report('Loading on one core', timed, options.output)


if __name__ == '__main__':
    main()
