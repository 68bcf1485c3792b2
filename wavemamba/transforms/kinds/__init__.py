"""The transforms that come with the library, a file a kind: a new file here is a new transform.

Each file registers functions `levels ->` transform under their names.
"""

from wavemamba.registry import import_folder

import_folder(__name__, __path__)
