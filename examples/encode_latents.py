"""Encode pictures once into latent shards: `python -m wavemamba.encode` as a script to read and change.

python examples/encode_latents.py --data IMAGES --out LATENTS --autoencoder stabilityai/sd-vae-ft-ema --mirror
python examples/train_dimsum.py --recipe examples/recipes/imagenet256.yaml --data LATENTS --out runs/imagenet256
"""

from __future__ import annotations

import os
import sys

# OpenMP's threads wait by spinning: two of them on a machine that does other things too would take many times longer.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from wavemamba.commands.encode import main

if __name__ == "__main__":
    sys.exit(main())
