"""The version of the distribution: the one place that names it (pyproject.toml reads it here)."""

from typing import Final

VERSION: Final = "0.1.0"
