"""A model of every family as an ONNX file: its size, and what onnxruntime makes of it beside PyTorch.

    python benchmarks/export.py
    python benchmarks/export.py --only "zigma*" --rounds 3

Each model reads one latent of 4 x 32 x 32 numbers; its zero weights are drawn anew, so that every path matters. Both
run on one thread, and seconds are those of the processor, so that other work on the machine counts for little.
"""

from __future__ import annotations

import argparse
import fnmatch
import tempfile
import time
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from common import refuse_wrong, report, time_cases
from torch.export import Dim

import wavemamba
from wavemamba import ops
from wavemamba.integrations.onnx import export_onnx

MODELS = ("dimsum_s2", "dit_s2", "sit_s2", "zigma_s2", "diffussm_s")
TOLERANCE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="names to measure, as a shell pattern")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="cpu-export", help="of the JSON under benchmarks/results")
    options = parser.parse_args()

    torch.set_num_threads(1)
    ops.warm_up()
    rows = [measure(name, options.rounds) for name in MODELS if fnmatch.fnmatch(name, options.only)]
    report(options.name, rows, rounds=options.rounds, onnxruntime=onnxruntime.__version__)


def measure(name: str, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = wavemamba.create_model(name).eval()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    inputs = torch.randn(2, 4, 32, 32), torch.rand(2), torch.randint(1000, (2,))
    batch = Dim("batch")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        start = time.process_time()
        program = export_onnx(model, inputs, path, dynamic_shapes=({0: batch}, {0: batch}, {0: batch}))
        seconds = time.process_time() - start
        size, nodes = path.stat().st_size, len(program.model.graph)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options)
    x, t, y = (value[:1] for value in inputs)
    feed = {"x": x.numpy(), "t": t.numpy(), "y": y.numpy()}
    with torch.no_grad():
        result = torch.from_numpy(session.run(None, feed)[0])
        error = refuse_wrong(name, result, model(x, t, y), TOLERANCE)
        runs = {"onnxruntime": lambda: session.run(None, feed), "PyTorch": lambda: model(x, t, y)}
        medians = time_cases(runs, rounds=rounds, clock=time.process_time)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return {
        "model": name,
        "file, MB": size / 1e6,
        "weights, MB": weights / 1e6,
        "nodes": nodes,
        "relative error": error,
        "export, s": seconds,
        "onnxruntime, s": medians["onnxruntime"],
        "PyTorch, s": medians["PyTorch"],
    }


if __name__ == "__main__":
    main()
