"""``python -m h2gen``."""

from h2gen.cli import main

main()
