import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts the current folder first: a file there, such as click.py, would replace a package of that name.
    if sys.path[:1] == [str(Path.cwd())]:
        sys.path.append(sys.path.pop(0))
    from arnn_lightning.cli import main

    main()
