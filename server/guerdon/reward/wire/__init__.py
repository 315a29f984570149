"""What crosses the network: protobuf and JSON in, domain types to the service, and back."""
