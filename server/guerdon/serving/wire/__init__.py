"""gRPC and protobuf: handlers over raw bytes, messages that services share, health."""
