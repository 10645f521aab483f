"""The server at an address: by HTTP or gRPC, as the address says."""

import urllib.parse

from export.triton.over_grpc import GrpcServer
from export.triton.over_http import HttpServer
from export.triton.protocol import Server
from recommender.errors import InputError


def open_server(url: str) -> Server:
    """The server at http(s)://HOST[:PORT][/PATH] or grpc://HOST:PORT; nothing is asked yet.

    Raises InputError for another address, and for gRPC where tritonclient is not installed.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:  # half of an IPv6 address, a port that is no number
        raise _no_address(url) from None
    if parts.scheme in ("http", "https") and parts.hostname:
        return HttpServer(url)
    if parts.scheme == "grpc" and parts.hostname and port is not None and not parts.path.strip("/"):
        return GrpcServer(url, parts.netloc)
    raise _no_address(url)


def _no_address(url: str) -> InputError:
    return InputError(
        f"{url!r} is no address of a server", where="--url",
        fix="give its HTTP port, http://localhost:8000, or its gRPC port, grpc://localhost:8001",
    )  # fmt: skip
