"""Write the files of this folder, with PyTorch 2.13: `python tests/golden/torch/write.py`."""

import argparse
import collections
import pathlib

import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parent


def make_state_dict():
    """Tensors of every kind; test_tensor_files.py has the same values."""
    base = torch.arange(30.0).reshape(6, 5) - 7
    state = collections.OrderedDict(
        base=base,
        transposed=base.T,
        every_second=base[1:4, ::2],
        row=base[2],
        repeated=torch.ones(1).expand(4),
        number=torch.tensor(3),
        empty=torch.zeros(0, 4),
        flags=torch.tensor([True, False]),
        half=base.half(),
        brain=base.bfloat16(),
        double=base.double(),
        bytes=torch.arange(3, dtype=torch.uint8),
        unsigned=torch.tensor([1, 65535], dtype=torch.uint16),
        complex=torch.view_as_complex(base[:, :2].contiguous()),
        parameter=torch.nn.Parameter(base[:2]),
    )
    state._metadata = {'': {'version': 1}}
    return state


def make_checkpoint():
    """What training scripts save beside a state dict."""
    network = torch.nn.Linear(3, 3)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        'epoch': 3,
        'best': np.float64(0.5),
        'args': argparse.Namespace(a=1, path=pathlib.Path('x')),
        'optimizer': optimizer.state_dict(),
        'scheduler': torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 4]).state_dict(),
        'table': np.arange(4),
        'log': [1.0, 'x', b'', b'\xff', 1j, {1, 2}, frozenset({3}), collections.deque([4]), bytearray(b'x')],
        'sizes': {'size': torch.Size([2]), 'device': torch.device('cpu'), 'dtype': torch.float32},
        'counts': collections.defaultdict(list, {'a': [1]}),
    }


def main():
    """One file per format, pickle protocol and place of the state dict; and two small ones that tests damage."""
    state, beside = make_state_dict(), make_checkpoint()
    torch.save({**beside, 'state_dict': state}, FOLDER / 'zip.pth.tar')
    torch.save({**beside, 'model': state}, FOLDER / 'zip_protocol4.pth', pickle_protocol=4)
    legacy = {'_use_new_zipfile_serialization': False}
    torch.save({**beside, 'model_state_dict': state}, FOLDER / 'legacy.pth.tar', **legacy)
    torch.save(state, FOLDER / 'legacy_protocol5.pth', pickle_protocol=5, **legacy)
    # its numbers are found in no other place of its pickle: offset 17, size (11, 13), stride (15, 1), 200 numbers
    small = {'state_dict': collections.OrderedDict(w=torch.arange(200.0)[17:182].view(11, 15)[:, :13])}
    torch.save(small, FOLDER / 'small_zip.pth')
    torch.save(small, FOLDER / 'small_legacy.pth', **legacy)


if __name__ == '__main__':
    main()
