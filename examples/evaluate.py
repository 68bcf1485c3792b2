"""Judge samples against reference images: `python -m wavemamba.evaluate` as a script to read and change.

python examples/evaluate.py --model runs/in256/model --count 50000 --reference IMAGES --out scores.json
torchrun --nproc-per-node 8 examples/evaluate.py --model M --reference VIRTUAL_imagenet256_labeled.npz --out s.json
"""

from __future__ import annotations

import sys

from wavemamba import set_up_cpu
from wavemamba.commands.evaluate import main

if __name__ == "__main__":
    set_up_cpu(restart=True)
    sys.exit(main())
