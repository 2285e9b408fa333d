"""The version of this package: written once, compared when a driver or a node joins a cluster."""

VERSION = "0.1.0"
COMMIT = "unknown"
"""The commit that a release is built from: whoever builds one writes it here. Programs print it."""
