"""Photos on the host: decode, crop to the garment, fit to the network's square input, jitter. PIL and numpy only."""

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 64_000_000  # a larger photo is refused before its pixels are decoded
MAX_BYTES = 200_000_000  # of a photo's file: MAX_PIXELS take 192 MB even without compression
MAX_ASPECT = 100  # a longer photo is cut to its middle first: resizing all of it could exhaust memory
BACKGROUND = (255, 255, 255)  # behind transparent pixels

Image.init()  # Pillow would load its readers on first use, which is not thread-safe
# Only formats that Pillow decodes by itself: for EPS it would start Ghostscript. Older builds of Pillow lack AVIF.
KNOWN_FORMATS = ('AVIF', 'BMP', 'GIF', 'JPEG', 'JPEG2000', 'PNG', 'PPM', 'TGA', 'TIFF', 'WEBP')
FORMATS = tuple(name for name in KNOWN_FORMATS if name in Image.OPEN)
if 'PILLOW_BLOCKS_MAX' not in os.environ:
    Image.core.set_blocks_max(8)  # of memory that Pillow keeps; allocating it again can take as long as decoding

Box = Sequence  # left, top, right, bottom as in boxes.Box, but any four numbers, such as a record's array


class _QuietPillow:
    """Silences Pillow's warnings (odd EXIF; its size limit is MAX_PIXELS here) while any thread is inside.

    `warnings.catch_warnings` alone restores the filters that its own thread found, so overlapping threads could leave
    all warnings off for good.
    """

    def __init__(self):
        self.lock, self.inside, self.caught = threading.Lock(), 0, warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.caught = warnings.catch_warnings()
                self.caught.__enter__()
                warnings.filterwarnings('ignore', module='PIL')

    def __exit__(self, *_) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.caught.__exit__(None, None, None)


QUIET_PILLOW = _QuietPillow()


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Turn whatever Pillow raises on a damaged file, even struct.error and TypeError, into ValueError."""
    try:
        with QUIET_PILLOW:
            yield
    except MemoryError:
        raise
    except UnidentifiedImageError as error:  # its own message contains a memory address
        raise ValueError(f'not a readable picture (none of {", ".join(FORMATS)})') from error
    except Exception as error:
        raise ValueError(f'not a readable picture ({error})') from error


def read_file(path: str | os.PathLike) -> bytes:
    """The content of a photo's file.

    Raises OSError if it cannot be read, and ValueError with the reason if it is not a regular file, since reading a pipe or a
    device may never end, or has more than MAX_BYTES.
    """
    with open(path, 'rb', opener=_open_regular) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ValueError(f'{size:,} bytes, but at most {MAX_BYTES:,} are read')
        return file.read(size)


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # otherwise, opening a pipe waits for its writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError('not a regular file')
    return descriptor


def decode(data: bytes) -> Image.Image:
    """The photo in `data` as upright RGB, fully decoded.

    Raises ValueError with the reason if the bytes are not a picture, are truncated, or hold more than MAX_PIXELS.
    """
    with _reading():
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    return upright_rgb(image)


def read_size(data: bytes) -> tuple[int, int]:
    """Width and height of the picture in `data`, as stored, without decoding it; raises ValueError as `decode` does."""
    with _reading():
        return Image.open(io.BytesIO(data), formats=FORMATS).size


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened picture as RGB: rotated as EXIF says, transparency on white, 16-bit gray scaled to 8 bits.

    A picture that needs none of this is returned as it is. Raises ValueError with the reason if it is damaged, or, before
    decoding it, if it has more than MAX_PIXELS.
    """
    with _reading():
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f'{image.width}x{image.height} pixels, but at most {MAX_PIXELS:,} are read')
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith('I'):  # 16-bit gray: Pillow's own conversion clips it to white
            image = Image.fromarray(np.uint8(np.clip(np.asarray(image) // 257, 0, 255)))
        if image.mode in ('RGBA', 'LA', 'PA') or 'transparency' in image.info:
            image = image.convert('RGBA')
            ground = Image.new('RGBA', image.size, (*BACKGROUND, 255))
            image = Image.alpha_composite(ground, image)
        return image if image.mode == 'RGB' else image.convert('RGB')


class Opened(NamedTuple):
    """A decoded photo, cropped if a box was given, and the position of its top left corner in the whole photo."""

    image: Image.Image
    left: int
    top: int


def crop_to_box(image: Image.Image, box: Box | None) -> Opened:
    """The part of an upright photo inside `box`, rounded outward and clipped to the photo; all of it without a box."""
    if box is None:
        return Opened(image, 0, 0)
    left, top = max(0, int(np.floor(box[0]))), max(0, int(np.floor(box[1])))
    right, bottom = min(image.width, int(np.ceil(box[2]))), min(image.height, int(np.ceil(box[3])))
    return Opened(image.crop((left, top, right, bottom)), left, top)


def fit_square(image: Image.Image, size: int, fit: str = 'crop') -> UInt8[np.ndarray, 'size size 3']:
    """`image` as a `size` x `size` square: cropped to its center, padded, or stretched.

    'crop' is what the papers do. 'pad' shows the whole photo and repeats its edge pixels around it. 'stretch' changes
    the aspect ratio.
    """
    if fit == 'stretch':
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return _crop_square(image, size) if fit == 'crop' else _pad_square(image, size)


def _pad_square(image: Image.Image, size: int) -> UInt8[np.ndarray, 'size size 3']:
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    rows, columns = size - height, size - width
    around = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0))
    return np.pad(pixels, around, mode='edge')


def _crop_square(image: Image.Image, size: int) -> UInt8[np.ndarray, 'size size 3']:
    """torchvision's Resize and CenterCrop: antialiased bilinear, longer side `int(size * long / short)`."""
    width, height = image.size
    longest = MAX_ASPECT * min(width, height)
    if max(width, height) > longest:
        left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
        image = image.crop((left, top, width - left, height - top))
        width, height = image.size
    if width <= height:
        width, height = size, int(size * height / width)
    else:
        width, height = int(size * width / height), size
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def box_to_square(box: Box, opened: Opened, size: int, fit: str = 'crop') -> Float[np.ndarray, ' 4']:
    """Where a box of the whole photo lies in `fit_square` of the opened one, in the square's pixels and clipped to it."""
    width, height = opened.image.size
    if fit == 'stretch':
        scales, offsets = (size / width, size / height), (0.0, 0.0)
    else:
        scale = size / (max(width, height) if fit == 'pad' else min(width, height))
        scales, offsets = (scale, scale), ((size - width * scale) / 2, (size - height * scale) / 2)
    corner = np.array([opened.left, opened.top] * 2, np.float32)
    moved = (np.array(box, np.float32) - corner) * np.array([*scales, *scales]) + np.array([*offsets, *offsets])
    return np.clip(moved, 0, size).astype(np.float32)


def jitter_crop(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """A random crop that keeps at least `1 - strength` of each side; an augmentation that no paper's recipe uses."""
    if strength <= 0:
        return image
    width, height = (max(1, round(side * (1 - rng.uniform(0, strength)))) for side in image.size)
    left, top = int(rng.integers(0, image.width - width + 1)), int(rng.integers(0, image.height - height + 1))
    return image.crop((left, top, left + width, top + height))
