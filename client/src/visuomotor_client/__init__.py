"""Acts with a policy on another machine: `visuomotor serve` there, `RemotePolicy` here. Needs no torch."""

from visuomotor_client.policy import ConnectionLost, Metadata, RemoteError, RemotePolicy, RequestRefused

__version__ = "0.1.0"

__all__ = ["ConnectionLost", "Metadata", "RemoteError", "RemotePolicy", "RequestRefused"]
