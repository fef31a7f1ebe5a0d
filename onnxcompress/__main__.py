"""`python -m onnxcompress`: the same program as the console script."""

import sys

from onnxcompress.cli import main

if __name__ == "__main__":
    sys.exit(main())
