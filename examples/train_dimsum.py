"""Train a DiMSUM diffusion model on images or latents: `python -m wavemamba.train` as a script to read and change.

python examples/train_dimsum.py --data digits --out runs/digits
python examples/train_dimsum.py --data FOLDER --image-size 64 --out runs/mine      (class = sub-folder)
accelerate launch examples/train_dimsum.py --recipe examples/recipes/imagenet256.yaml --data LATENTS --out runs/in
"""

from __future__ import annotations

import sys

from wavemamba import set_up_cpu
from wavemamba.commands.train import main

if __name__ == "__main__":
    set_up_cpu(restart=True)
    sys.exit(main())
