"""``python -m rlkit``: the command line, where the script ``rlkit`` is not on the path."""

import sys

from rlkit.cli import main

sys.exit(main())
