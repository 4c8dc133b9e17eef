"""Version of the package, importable from everywhere."""

__version__ = "0.1.0"
