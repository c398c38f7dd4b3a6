"""Import the modules named in the arguments, then print the names of all that are loaded."""

import importlib
import sys

if __name__ == "__main__":
    for name in sys.argv[1:]:
        importlib.import_module(name)
    print(*sys.modules)
