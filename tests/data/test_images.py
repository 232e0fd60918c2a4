"""Photos to pixels: torchvision's geometry, unusual and damaged files, and boxes."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from asen_jax.data import images


def encode(image, kind='PNG', **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def photo():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (90, 61, 3), np.uint8))


def test_crop_resizes_the_shorter_side_and_keeps_the_center(photo):
    size, long = 32, int(32 * 90 / 61)
    offset = round((long - size) / 2)
    tall = np.asarray(photo.resize((size, long), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(images.fit_square(photo, size), tall[offset : offset + size])
    wide = photo.transpose(Image.Transpose.TRANSPOSE)
    expected = np.asarray(wide.resize((long, size), Image.Resampling.BILINEAR))[:, offset : offset + size]
    np.testing.assert_array_equal(images.fit_square(wide, size), expected)


@pytest.mark.parametrize('fit', ['crop', 'pad', 'stretch'])
@pytest.mark.parametrize('shape', [(10, 300), (300, 10), (32, 32), (1, 1)])
def test_every_fit_makes_a_square_of_any_shape(fit, shape):
    assert images.fit_square(Image.new('RGB', shape), 32, fit).shape == (32, 32, 3)


@pytest.mark.parametrize('turned', [False, True])
def test_a_very_long_photo_is_cut_before_it_is_resized(turned, monkeypatch):
    rng = np.random.default_rng(0)
    middle = rng.integers(0, 256, (2, 1000, 3), np.uint8)
    pixels = np.concatenate([np.zeros((2, 400, 3), np.uint8), middle, np.zeros((2, 400, 3), np.uint8)], axis=1)
    photo = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 0, 2)) if turned else pixels)
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, 'resize', lambda self, size, *rest: sizes.append(size) or resize(self, size, *rest)
    )
    square = images.fit_square(photo, 8)
    assert max(sizes[0]) == 8 * images.MAX_ASPECT
    monkeypatch.setattr(images, 'MAX_ASPECT', 10_000)
    np.testing.assert_array_equal(images.fit_square(photo, 8), square)


@pytest.mark.parametrize('fit', ['crop', 'pad', 'stretch'])
def test_a_box_moves_with_its_pixels(fit):
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[30:50, 50:75] = 255
    square = images.fit_square(Image.fromarray(pixels), 60, fit)
    opened = images.Opened(Image.fromarray(pixels), 0, 0)
    left, top, right, bottom = images.box_to_square((50, 30, 75, 50), opened, 60, fit)
    rows, columns = np.nonzero(square[..., 0] > 127)
    np.testing.assert_allclose(
        [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], [left, top, right, bottom], atol=1
    )


def test_cropping_to_a_box_moves_the_boxes_inside_it(photo):
    opened = images.crop_to_box(photo, (10.2, 20, 29.5, 60))
    assert (opened.left, opened.top) == (10, 20)
    np.testing.assert_array_equal(np.asarray(opened.image), np.asarray(photo)[20:60, 10:30])
    np.testing.assert_allclose(images.box_to_square((10, 20, 20, 40), opened, 40, 'stretch'), [0, 0, 20, 20])
    assert images.crop_to_box(photo, None).image is photo


def test_jitter_keeps_most_of_the_photo(photo):
    rng = np.random.default_rng(1)
    sizes = [images.jitter_crop(photo, rng, 0.3).size for _ in range(50)]
    assert len(set(sizes)) > 10
    assert min(width for width, _ in sizes) >= 0.69 * 61
    assert images.jitter_crop(photo, rng, 0.0) is photo


def test_a_picture_that_is_upright_rgb_is_not_copied(photo):
    assert images.upright_rgb(photo) is photo


def test_the_memory_of_pictures_is_kept_for_the_next_ones(photo):
    images.decode(encode(photo))
    Image.core.reset_stats()
    images.decode(encode(photo))
    assert Image.core.get_stats()['reused_blocks']


def test_exif_rotates_and_transparency_becomes_white(photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter turn
    assert images.decode(encode(photo, 'JPEG', exif=exif)).size == (90, 61)
    clear = Image.new('RGBA', (4, 4), (10, 20, 30, 0))
    assert images.decode(encode(clear)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize('mode', ['L', 'CMYK', '1', 'P', 'I;16'])
def test_any_mode_becomes_rgb(mode):
    kind = 'JPEG' if mode == 'CMYK' else 'PNG'
    assert images.decode(encode(Image.new(mode, (5, 4)), kind)).mode == 'RGB'


def test_16_bit_gray_keeps_its_shades():
    ramp = np.array([[0, 257 * 64, 257 * 128, 65535]], np.uint16)
    assert np.asarray(images.decode(encode(Image.fromarray(ramp))))[0, :, 0].tolist() == [0, 64, 128, 255]


def test_unreadable_pictures_are_refused_with_a_reason(photo, monkeypatch):
    data = encode(photo, 'JPEG')
    for broken in (b'', b'no picture', data[: len(data) // 2], encode(photo)[:200]):
        with pytest.raises(ValueError, match='not a readable picture'):
            images.decode(broken)
    with pytest.raises(ValueError, match=r'none of .*JPEG'):
        images.decode(encode(photo, 'EPS'))  # which Pillow would hand to Ghostscript
    monkeypatch.setattr(images, 'MAX_PIXELS', 1000)
    with pytest.raises(ValueError, match='61x90 pixels, but at most 1,000'):
        images.decode(data)


def test_only_regular_files_of_bounded_size_are_read(tmp_path, monkeypatch):
    (tmp_path / 'a.jpg').write_bytes(b'photo')
    (tmp_path / 'link.jpg').symlink_to(tmp_path / 'a.jpg')
    assert images.read_file(tmp_path / 'link.jpg') == images.read_file(str(tmp_path / 'a.jpg')) == b'photo'
    os.mkfifo(tmp_path / 'pipe.jpg')
    (tmp_path / 'zero.jpg').symlink_to('/dev/zero')
    for path in (tmp_path, tmp_path / 'pipe.jpg', tmp_path / 'zero.jpg'):
        with pytest.raises(ValueError, match='not a regular file'):
            images.read_file(path)
    with pytest.raises(FileNotFoundError):
        images.read_file(tmp_path / 'b.jpg')
    monkeypatch.setattr(images, 'MAX_BYTES', 4)
    with pytest.raises(ValueError, match='5 bytes, but at most 4 are read'):
        images.read_file(tmp_path / 'a.jpg')


def test_any_damage_raises_value_error(photo):
    rng, exif = np.random.default_rng(2), Image.Exif()
    exif[0x0112], exif[0x010E] = 3, 'a shop'
    for kind in ('PNG', 'JPEG', 'GIF', 'TIFF', 'WEBP', 'BMP'):
        data = np.frombuffer(encode(photo, kind, **({} if kind in ('GIF', 'BMP') else {'exif': exif})), np.uint8)
        for _ in range(60):
            broken = data.copy()
            broken[rng.integers(0, min(len(data), 200), 4)] = rng.integers(0, 256, 4)
            try:
                assert images.decode(broken.tobytes()).mode == 'RGB'
            except ValueError as error:
                assert str(error)
