"""Draw pictures from a saved model: `python -m wavemamba.sample` as a script to read and change.

python examples/sample_dimsum.py --model runs/digits/model --out samples.png
python examples/sample_dimsum.py --model runs/digits/model --classes 3 8 --per-class 16 --solver euler --steps 25
python examples/sample_dimsum.py --model runs/digits/model --diffusion sigma --steps 100 --size 16
"""

from __future__ import annotations

import sys

from wavemamba import set_up_cpu
from wavemamba.commands.sample import main

if __name__ == "__main__":
    set_up_cpu(restart=True)
    sys.exit(main())
