"""Build time only: OpenAI's checkpoint -> ``model/``, behind a parity gate. Needs torch and clip."""
