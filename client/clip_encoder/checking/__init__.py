"""Whether two services make the same vectors, and if not, why; and whether one works at all."""
