"""Encode pictures once into latent shards: `python -m wavemamba.encode` as a script to read and change.

python examples/encode_latents.py --data IMAGES --out LATENTS --autoencoder stabilityai/sd-vae-ft-ema --mirror
python examples/train_dimsum.py --recipe examples/recipes/imagenet256.yaml --data LATENTS --out runs/imagenet256
"""

from __future__ import annotations

import sys

from wavemamba import set_up_cpu
from wavemamba.commands.encode import main

if __name__ == "__main__":
    set_up_cpu(restart=True)
    sys.exit(main())
