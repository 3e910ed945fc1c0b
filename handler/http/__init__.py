"""The HTTP interface: routes, what stands around every request, and how bodies are read."""
