#!/bin/sh
# Generates the Python code and the stubs of netbird_wire/*.proto beside them, or into the directory given.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-../.venv/bin/python}
out=${1:-.}
# Everybody here speaks grpc.aio, and a servicer may leave out calls, which then answer UNIMPLEMENTED: the stubs say so.
# protoc looks for the stub generators on the path.
PATH="$(dirname "$python"):$PATH"
exec "$python" -m grpc_tools.protoc -I . \
  --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" \
  --mypy_grpc_out=quiet,only_async,generate_concrete_servicer_stubs:"$out" \
  netbird_wire/*.proto
