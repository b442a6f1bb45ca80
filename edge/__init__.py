"""The node: camera > detect > track > crop > classify > aggregate > publish."""

__version__ = "0.1.0"
