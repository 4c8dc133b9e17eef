"""Entry point of ``python -m edgelm``, the same as ``edgelm``."""

from edgelm.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
