"""Load the trunks that `config.init.trunk` names: its pretrained weights, a file, or a Hugging Face repository."""

import re
from collections.abc import Collection
from pathlib import Path

from ml_collections import ConfigDict

from asen_jax import files
from asen_jax.errors import InputError
from asen_jax.models.registry import network_kind, trunk_kind
from asen_jax.weights.tensor_files import read_tensors
from asen_jax.weights.torch_names import fill_trunk

HUB_FILE = 'model.safetensors'
NONE_REMEDY = '--config.init.trunk=none starts from random weights, which do not reach the results of the papers'


def read_trunks(
    config: ConfigDict, params: dict, batch_stats: dict, without: Collection[str] = ()
) -> tuple[dict, dict]:
    """Parameters and batch statistics of the network's trunks from `config.init.trunk`, by module, but for those in `without`.

    `params` and `batch_stats` are the network's arrays or their shapes. Both trees are empty for 'none'. Raises InputError if a file is
    missing or damaged, or if its tensors do not match those of the trunk.
    """
    found: tuple[dict, dict] = {}, {}
    for module, trunk in network_kind(config.model.name).trunks(config.model).items():
        path = None if module in without else find_trunk(config, trunk)
        if path is None:
            continue
        _check_name(path)
        tensors = read_tensors(path)
        try:
            filled = fill_trunk(params[module], batch_stats.get(module, {}), tensors, trunk)
        except InputError as error:
            raise InputError(f'{path}: {error}') from error
        for tree, part in zip(found, filled, strict=True):
            tree |= {module: part} if part else {}
    return found


def find_trunk(config: ConfigDict, trunk: str) -> Path | None:
    """The file that `config.init.trunk` names for `trunk`, downloaded first if it is on the Hugging Face Hub; None for 'none'."""
    name = config.init.trunk
    if name == 'none':
        return None
    if name == 'imagenet':
        weights = trunk_kind(trunk).pretrained
        path = weights.find(config.model)
        if not path and not weights.hub:
            raise InputError(
                f'config.init.trunk is imagenet, but the weights of {trunk} are not installed; {weights.remedy}; '
                f'{NONE_REMEDY}.'
            )
        return path or _fetch(weights.hub, HUB_FILE, name, weights.remedy)
    if name.startswith('hf://'):
        parts = re.fullmatch(r'hf://([^/]+/[^/]+)(?:/(.+))?', name)
        if not parts:
            raise InputError(f'config.init.trunk is {name!r}; write hf://OWNER/NAME or hf://OWNER/NAME/FILE.')
        remedy = 'check the name and the network, or download the file elsewhere and name it'
        return _fetch(parts[1], parts[2] or HUB_FILE, name, remedy)
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(
            f'config.init.trunk is {name!r}, but that file does not exist; name a .pth or .safetensors file of {trunk}, '
            'hf://OWNER/NAME, imagenet or none.'
        )
    return path


def _check_name(path: Path) -> None:
    """Raise InputError if the file's SHA-256 does not start with the digits that torchvision put in its name."""
    named = re.search(r'-([0-9a-f]{8})\.pth$', path.name)
    if named is None or named[1].isdigit():  # eight decimal digits are a date
        return
    digest = files.sha256(path)
    if not digest.startswith(named[1]):
        raise InputError(f'{path} is damaged: its SHA-256 starts with {digest[:8]}; download it again.')


def _fetch(repository: str, file: str, name: str, remedy: str) -> Path:
    """The local copy of a file on the Hugging Face Hub, downloaded if it is not cached; `name` is what the user asked for."""
    try:
        from huggingface_hub import hf_hub_download  # slow to import

        return Path(hf_hub_download(repository, file))
    except Exception as error:  # its errors and those of its HTTP library have no base class in common
        why = re.split(r'\n|\. ', str(error).strip())[0].removesuffix('.')[:160]
        raise InputError(
            f'config.init.trunk is {name!r}, but {file} of {repository} could not be downloaded ({why}); {remedy}; '
            f'{NONE_REMEDY}.'
        ) from error
