"""`python -m dogbreed_ml VERB` is `dogbreed VERB`."""

import sys

from dogbreed_ml.cli import main

if __name__ == "__main__":
    sys.exit(main())
