"""The scan orders that come with the library, a file a family: a new file here is a new order.

Each file registers functions `(H, W, **options) -> (H * W,)` under their names.
"""

from wavemamba.registry import import_folder

import_folder(__name__, __path__)
