"""Makes proto/*_pb2.py and *.pyi from proto/*.proto: `python -m api.dialects.stability.compile`."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "proto"
SOURCE_DIR = Path(__file__).parents[3]


def compile_protos(target: Path = SOURCE_DIR) -> int:
    """protoc's exit status; the modules lie under `target` as the .proto files lie under the source."""
    # Of the extra `test`: whoever only runs the service needs no compiler.
    from grpc_tools import protoc  # noqa: PLC0415 - only developers have it

    sources = sorted(str(path.relative_to(SOURCE_DIR)) for path in FOLDER.glob("*.proto"))
    included = Path(protoc.__file__).parent / "_proto"
    options = [f"--proto_path={SOURCE_DIR}", f"--proto_path={included}"]
    status: int = protoc.main(["protoc", *options, f"--python_out={target}", f"--pyi_out={target}", *sources])
    return status


if __name__ == "__main__":
    sys.exit(compile_protos())
