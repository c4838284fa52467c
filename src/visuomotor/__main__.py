"""`python -m visuomotor` is the `visuomotor` command."""

import sys

from visuomotor.cli import main

sys.exit(main())
