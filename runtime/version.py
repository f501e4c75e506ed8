"""The version, on the lowest floor, so that every floor can name it; pyproject.toml carries the same."""

__version__ = "0.1.0"
