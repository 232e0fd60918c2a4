"""What is read from prepared records."""

import io

import numpy as np
import pytest
from PIL import Image

from asen_jax.data import prepared


def photo(width, height, bbox=None):
    file = io.BytesIO()
    Image.new('RGB', (width, height)).save(file, 'JPEG')
    record = {'image': file.getvalue()}
    return record if bbox is None else record | {'bbox': np.array(bbox, np.float32)}


@pytest.mark.parametrize(
    'photos,crop_to_bbox,size',
    [
        ([photo(60, 80)] * 3, False, 160),  # small photos are enlarged
        ([photo(30, 40)], False, 160),
        ([photo(80, 128), photo(9, 9), photo(300, 900)], False, 256),  # the median photo decides
        ([photo(600, 800)], False, 288),
        ([photo(600, 800, (10, 20, 60, 148))], True, 256),
        ([photo(600, 800, (10, 20, 60, 148))], False, 288),
    ],
)
def test_the_size_of_the_input_follows_the_median_photo(records, monkeypatch, photos, crop_to_bbox, size):
    monkeypatch.setattr(prepared, 'open_split', lambda directory, split: photos)
    assert prepared.choose_image_size(records, crop_to_bbox) == size
