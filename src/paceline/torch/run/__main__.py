"""Started by torch elastic on each rank; see `_entry`."""

import sys

from paceline.torch.run._entry import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
