"""HTTP beside gRPC: uvicorn on the service's own event loop, bodies, routes that all have."""
