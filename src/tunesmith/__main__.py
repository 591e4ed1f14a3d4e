"""``python -m tunesmith``: the same command."""

import sys

from tunesmith.cli import main

sys.exit(main())
