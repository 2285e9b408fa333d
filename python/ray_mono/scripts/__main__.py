"""`python -m ray_mono.scripts` is `ray-mono`."""

import sys

# With -m that is the current directory, whose files may have the names of modules that we import.
if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]

from ray_mono.scripts.scripts import main

if __name__ == "__main__":
    main()
