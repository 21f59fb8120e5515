"""Prints the oldest releases that pyproject.toml allows, pinned."""

import pathlib
import tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
print(*(dependency.replace(">=", "==") for dependency in project["dependencies"]))
