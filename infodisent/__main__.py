"""``python -m infodisent``: the command line, also under ``torchrun -m infodisent``."""

from infodisent.cli.app import main

if __name__ == "__main__":
    main()
