"""``python -m textdistill`` is ``textdistill``."""

from textdistill.cli.main import main

if __name__ == "__main__":
    main()
