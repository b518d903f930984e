"""gRPC and gRPC-Web: the adapter that runs grpcio-style servicers over ASGI, and our servicers."""
