"""Where `config.init.trunk` comes from: torchvision's ImageNet weights, a file, or a repository of Hugging Face."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from asen_jax.errors import InputError
from asen_jax.weights import torch_names
from asen_jax.weights.tensor_files import read_tensors

FOLDER = Path('data/pretrained')
URL = 'https://download.pytorch.org/models/'
# torchvision's v1 weights, which the papers started from; the second name is an older file of the same weights
IMAGENET = {
    'resnet18': ('resnet18-f37072fd.pth', 'resnet18-5c106cde.pth'),
    'resnet34': ('resnet34-b627a593.pth', 'resnet34-333f7ec4.pth'),
    'resnet50': ('resnet50-0676ba61.pth', 'resnet50-19c8e357.pth'),
}
HUB_FILE = 'model.safetensors'
NONE_REMEDY = "--config.init.trunk=none starts from random weights, whose figures are not the papers'"


def read_trunk(config: ConfigDict) -> dict[str, np.ndarray] | None:
    """The tensors that `config.init.trunk` names, or None for 'none'; raises InputError where they cannot be read."""
    path = find_trunk(config)
    if path is None:
        return None
    _check_name(path)
    return read_tensors(path)


def fill_trunk(
    config: ConfigDict, params: dict, batch_stats: dict, tensors: Mapping[str, np.ndarray]
) -> tuple[dict, dict]:
    """`params` and `batch_stats` (arrays or shapes) with the trunk's `tensors`; raises InputError where they do not fit."""
    try:
        return torch_names.fill_trunk(params, batch_stats, tensors, config.model.trunk)
    except InputError as error:
        raise InputError(f'config.init.trunk={config.init.trunk}: {error}') from error


def find_trunk(config) -> Path | None:
    """The file that `config.init.trunk` names, fetched where it is a `hf://` name; None for 'none'."""
    name, trunk = config.init.trunk, config.model.trunk
    if name == 'none':
        return None
    if name.startswith('hf://'):
        return _fetch(name)
    if name != 'imagenet':
        if not Path(name).expanduser().is_file():
            raise InputError(
                f'config.init.trunk is {name!r}, which is no file; name a .pth or .safetensors file of {trunk}, hf://OWNER/NAME, '
                'imagenet or none.'
            )
        return Path(name).expanduser()
    for file in IMAGENET[trunk]:
        if (FOLDER / file).is_file():
            return FOLDER / file
    newest = IMAGENET[trunk][0]
    raise InputError(
        f'config.init.trunk is imagenet, but {FOLDER / newest} is not there; download {URL}{newest} to that place, or set '
        f'--config.init.trunk=hf://timm/{trunk}.tv_in1k; {NONE_REMEDY}.'
    )


def _check_name(path: Path) -> None:
    """torchvision puts the first digits of a file's SHA-256 into its name: a download that was cut short tells itself."""
    named = re.search(r'-([0-9a-f]{8})\.pth$', path.name)
    if named is None or named[1].isdigit():  # eight figures are a date
        return
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    if not digest.startswith(named[1]):
        raise InputError(
            f'{path} is damaged: its SHA-256 begins {digest[:8]}, its name says {named[1]}; download it again.'
        )


def _fetch(name: str) -> Path:
    """`hf://OWNER/NAME` or `hf://OWNER/NAME/FILE`, from the local cache or the network."""
    parts = name.removeprefix('hf://').split('/', 2)
    if len(parts) < 2 or not all(parts):
        raise InputError(f'config.init.trunk is {name!r}; write hf://OWNER/NAME or hf://OWNER/NAME/FILE.')
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise InputError(
            f'config.init.trunk is {name!r}, which huggingface_hub fetches: pip install huggingface_hub; or download the file '
            'yourself and name it.'
        ) from error
    try:
        return Path(hf_hub_download('/'.join(parts[:2]), parts[2] if len(parts) == 3 else HUB_FILE))
    except Exception as error:  # its errors and its HTTP library's have no base of their own
        why = str(error).strip().split('\n')[0][:160]
        raise InputError(
            f'config.init.trunk is {name!r}, which could not be fetched ({why}); look at the name and the network, or download '
            f'the file elsewhere and name it; {NONE_REMEDY}.'
        ) from error
