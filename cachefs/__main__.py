"""`python -m cachefs` is the command `cachefs`."""

from cachefs.cli.main import main

if __name__ == "__main__":
    main()
