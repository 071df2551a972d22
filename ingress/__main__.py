"""`python -m ingress` is the command `ingress`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
