"""What the benchmarks compare with is the same model: they would otherwise break unseen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
COMPARE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
import wavemamba
from model import reference_loop
torch.manual_seed(0)
model = wavemamba.create_model("dimsum_s2", depth=2, img_size=8).eval()
for parameter in model.parameters():
    if not parameter.any():
        torch.nn.init.normal_(parameter, std=0.02)
inputs = torch.randn(1, 4, 8, 8), torch.tensor([0.5])
with torch.no_grad():
    ours = model(*inputs)
    with reference_loop():
        torch.testing.assert_close(model(*inputs), ours, rtol=1e-4, atol=1e-5)
"""


def test_the_model_on_the_plain_loop_is_the_model():
    done = subprocess.run([sys.executable, "-c", COMPARE, str(FOLDER)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


EQUAL = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
import wavemamba
from model import FAMILIES, build, expect_equal, measure
from wavemamba.models.registry import library_families

with torch.device("meta"):
    models = {name: wavemamba.create_model(name, **options) for name, options in FAMILIES.items()}
assert {model.family for model in models.values()} == set(library_families())
expect_equal(models)
tiny = {"img_size": 8, "depth": 1, "dim": 32, "num_classes": 3}
heads = {"dimsum": {"attention_heads": 2, "fusion_heads": 2}, "dit": {"num_heads": 2}}
rows = measure({name: build(name, tiny | heads.get(model.family, {})) for name, model in models.items()}, (1, 2), 1)
assert [(row["model"], row["what"]) for row in rows] == [
    (name, what) for what in ("forward", "training step") for name in models
]
assert {row["model"] for row in rows if "loop / ours" in row} == {"dimsum_s2", "zigma_s2"}
assert all(row["GFLOP"] > 0 for row in rows)
one = {"dimsum_s2": build("dimsum_s2", tiny | heads["dimsum"])}
rows = measure(one, (1, 2), 1, ["float32", "bfloat16"])
assert [row["dtype"] for row in rows] == ["float32", "bfloat16"] * 2
assert rows[0]["GFLOP"] == rows[1]["GFLOP"] and 0 < rows[1]["error"] and "peak GiB" in rows[-1]
"""


def test_families_are_compared_at_equal_parameters_and_each_computes_what_it_should():
    done = subprocess.run([sys.executable, "-c", EQUAL, str(FOLDER)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_small_model_is_timed_in_a_process_of_its_own():
    command = [sys.executable, FOLDER / "small_model.py", "--child", "demo", "fused", "--steps=1", "--threads=1"]
    row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert row["step ms"] == row["gradients ms"] + row["optimizer ms"] > row["products ms"] > 0
    assert row["k parameters"] == pytest.approx(543.2, abs=0.1)


PEERS = """
import dataclasses, sys
sys.path.insert(0, sys.argv[1])
import torch
import peers
from beside.contest import Contest, Side

torch.set_num_threads(1)
names = ("layer: RMSNorm", "layer: unpatchify")
cheap = [dataclasses.replace(c, sizes=c.sizes[:1]) for name in names for c in peers.select(name)]


def wrong(width):
    x = torch.ones(width)
    return Side(call=torch.sin, inputs=(x,)), Side(call=torch.cos, inputs=(x.clone(),))


def absent(width):
    import no_such_package


rows, skipped = peers.measure([*cheap, Contest(name="absent", peer="none", make=absent, sizes=[(2,)])], rounds=1)
assert [(row["name"], row["what"]) for row in rows] == [(name, what) for name in names for what in ("forward", "step")]
assert all(row["ratio"] > 0 and row["error"] <= 1e-5 for row in rows)
assert "no_such_package" in skipped["absent beside none"]
machine = {"processor": "P", "threads": 1, "cores": 2, "torch": "2"}
results = {"rows": rows, "settings": {"rounds": 1}, "machine": machine}
assert [line.split(" | ")[0] for line in peers.markdown(results).splitlines()[4:]] == [f"| {name}" for name in names]
try:
    peers.measure([Contest(name="wrong", peer="cosine", make=wrong, sizes=[(2,)])], rounds=1)
except SystemExit as error:
    assert "not timed" in str(error)
else:
    raise AssertionError("a wrong answer was timed")
"""


def test_what_is_set_beside_a_peer_is_compared_first():
    done = subprocess.run([sys.executable, "-c", PEERS, str(FOLDER)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
