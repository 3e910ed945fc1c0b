"""Lambda events that are not HTTP: direct invokes, and those of AWS's batch engines."""
