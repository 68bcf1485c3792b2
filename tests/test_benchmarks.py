"""What the benchmarks compare with is the same model: they would otherwise break unseen."""

import subprocess
import sys
from pathlib import Path

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
