"""``python -m fedfields`` is the same as ``fedfields``."""

from fedfields.cli import main

main()
