"""``python -m clip_encoder`` is ``clip-encoder``."""

import sys

from clip_encoder.cli import main

sys.exit(main())
