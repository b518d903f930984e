"""Programs that do next to nothing: what is left of a server without its work, and the work without its server."""
