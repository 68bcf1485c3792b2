"""The kinds of data that come with the library, a file a kind: a new file here is a new kind.

Each file calls `register_source` with what `open_source` then opens; nobody else can take its name.
"""

from wavemamba.data.registry import keep_names
from wavemamba.registry import import_folder

import_folder(__name__, __path__)
keep_names()
