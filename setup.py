"""Finds the packages: all below src/, and the top-level conf/, which is installed as arnn_lightning.conf."""

from setuptools import find_packages, setup

setup(packages=[*find_packages("src"), "arnn_lightning.conf"])
