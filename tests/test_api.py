"""The public names of the package, and fit from Python."""

import subprocess
import sys

import arnn_lightning as al


def test_every_public_name_can_be_imported() -> None:
    for name in al.__all__:
        assert getattr(al, name) is not None
        assert name in dir(al)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, arnn_lightning; sys.exit(bool({'torch', 'polars', 'hydra'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)
