"""Programs of torch.export serve any batch and grid, in the process that made them and in others."""

import functools
import subprocess
import sys

import block_zoo
import model_zoo
import pytest
import torch
from support import relative_error
from torch.export import Dim

from wavemamba import MambaMixer, SpatialFrequencyFusion

BATCH, HEIGHT, WIDTH = Dim("batch"), Dim("height"), Dim("width")
DIM, COND = block_zoo.DIM, block_zoo.COND
BLOCKS = block_zoo.BLOCKS
MODELS = model_zoo.ONE_OF_EACH
SAVED = ("spatial", "wavelet mosaic", "spatial, Mamba-2", "wavelet dct", "mixer", *(f"model {name}" for name in MODELS))
SIZES = ((3, 8, 12), (1, 7, 3), (2, 9, 2))  # batch, rows and columns, of tokens


class Block:
    """A block of the zoo, its arguments and the sides that are open."""

    sides = ({0: BATCH, 1: HEIGHT, 2: WIDTH}, {0: BATCH})

    def __init__(self, name):
        self.module = block_zoo.build(name, COND).eval()

    def inputs(self, batch, height, width):
        return torch.randn(batch, height, width, DIM), torch.randn(batch, COND)


class Fusion:
    sides = ({0: BATCH, 1: HEIGHT, 2: WIDTH}, {0: BATCH, 1: HEIGHT, 2: WIDTH})

    def __init__(self):
        self.module = SpatialFrequencyFusion(DIM).eval()

    def inputs(self, *size):
        return torch.randn(*size, DIM // 2), torch.randn(*size, DIM // 2)


class Mixer:
    sides = ({0: BATCH, 1: Dim("length")},)

    def __init__(self):
        self.module = MambaMixer(DIM).eval()

    def inputs(self, batch, height, width):
        return (torch.randn(batch, height * width, DIM),)


class Model:
    def __init__(self, name):
        self.module = model_zoo.build(name, depth=1).eval()
        rows, columns = self.module.config.patch_shape
        self.sides = ({0: BATCH, 2: rows * HEIGHT, 3: columns * WIDTH}, {0: BATCH}, {0: BATCH})

    def inputs(self, batch, height, width):
        rows, columns = self.module.config.patch_shape
        return model_zoo.inputs(self.module, batch, (rows * height, columns * width))


CASES = {
    **{name: functools.partial(Block, name) for name in BLOCKS},
    "fusion": Fusion,
    "mixer": Mixer,
    **{f"model {name}": functools.partial(Model, name) for name in MODELS},
}


@functools.cache
def exported(name):
    torch.manual_seed(0)
    case = CASES[name]()
    with torch.no_grad():
        return case, torch.export.export(case.module, case.inputs(2, 6, 8), dynamic_shapes=case.sides)


def first(result):
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("name", CASES)
def test_a_program_takes_any_batch_and_grid(name):
    case, program = exported(name)
    run = program.module()
    for size in SIZES:
        inputs = case.inputs(*size)
        assert relative_error(first(run(*inputs)), first(case.module(*inputs))) < 1e-6


def test_saved_programs_run_in_a_process_that_has_imported_the_library_alone(tmp_path):
    for number, name in enumerate(SAVED):
        case, program = exported(name)
        inputs = case.inputs(1, 5, 10)
        torch.export.save(program, tmp_path / f"{number}.pt2")
        torch.save((inputs, first(case.module(*inputs)).detach()), tmp_path / f"{number}.pt")
    code = """
import sys, torch, wavemamba
for number in range(int(sys.argv[2])):
    inputs, expected = torch.load(f"{sys.argv[1]}/{number}.pt")
    result = torch.export.load(f"{sys.argv[1]}/{number}.pt2").module()(*inputs)
    result = result[0] if isinstance(result, tuple) else result
    print(result.shape == expected.shape and (result - expected).norm() < 1e-6 * expected.norm())
"""
    command = [sys.executable, "-c", code, str(tmp_path), str(len(SAVED))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["tensor(True)"] * len(SAVED), result.stderr
