"""``python -m infodisent.cli``: the same as ``infodisent``."""

from infodisent.cli.app import main

if __name__ == "__main__":
    main()
