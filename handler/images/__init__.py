"""Images: where they lie, what they are, and how they become pixels."""
