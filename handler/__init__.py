"""OpenAI CLIP ViT-B/32 image embeddings as an AWS Lambda function and a web server.

Read the files in the order the data takes: ``main`` (event), ``app`` and ``direct`` (request and
response), ``schemas`` (bytes), ``encoder``, ``image`` (pixels), ``engines`` (embedding).
"""

import os

# What is not used here, kept out of the cold start: NumPy and pydantic read these at import.
os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # else NumPy starts threads of its own, which spin
os.environ.setdefault(
    "PYDANTIC_DISABLE_PLUGINS", "__all__"
)  # else a look at every package installed

__version__ = "0.1.0"
