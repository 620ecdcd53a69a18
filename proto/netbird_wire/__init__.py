"""The wire: generated protobuf and gRPC code, and what the wire needs beside it."""
