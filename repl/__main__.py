"""`python -m fastgrad.repl`."""

import sys

from fastgrad.repl.console import main

sys.exit(main(sys.argv[1:]))
