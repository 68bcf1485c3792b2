"""The kinds of data that come with the library, a file a kind: a new file here is a new kind.

Each file calls `register_source` with what `open_source` then opens.
"""

from wavemamba.registry import import_folder

import_folder(__name__, __path__)
