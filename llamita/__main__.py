"""`python -m llamita`."""

import sys

from llamita.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
