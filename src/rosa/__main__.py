"""`python -m rosa`, which is `rosa`: launchers of several processes start a module."""

import sys

from rosa.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
