"""The native gRPC process: `python -m api.dialects.stability`."""

from __future__ import annotations

import signal
import sys
import threading

import structlog

from api.app import make_parts
from api.dialects.stability.native import CannotListen, open_pool, open_server
from api.dialects.stability.settings import GrpcSettings
from api.settings import ApiSettings
from storage.logs import configure_logging
from storage.settings import StorageSettings

log = structlog.get_logger(__name__)


def main() -> int:
    settings, storage_settings = GrpcSettings(), StorageSettings()
    configure_logging(storage_settings)
    api_settings = ApiSettings().model_copy(update={"max_waiting_clients": settings.grpc_streams})
    parts = make_parts(api_settings, storage_settings)
    pool = open_pool(settings)
    try:
        server, ports = open_server(parts, settings, pool)
    except CannotListen as error:
        log.critical("cannot_listen", reason=str(error))
        return 1
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    server.start()
    log.info("grpc_listens", address=settings.grpc_address, keyless=settings.grpc_keyless, **ports)
    stop.wait()
    # Those who wait are told to come again; their jobs go on meanwhile.
    parts.arrivals.close()
    server.stop(settings.grpc_grace_seconds).wait()
    pool.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
