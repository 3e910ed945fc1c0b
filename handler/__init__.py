"""OpenAI CLIP image embeddings as an AWS Lambda function and a web server.

Read the files in the order of the data: ``main`` (an event comes in), ``http`` and ``events``
(requests and responses), ``schemas`` (what a request holds), ``encoder``, ``images`` (a file
becomes pixels), ``engines`` (pixels become an embedding).
"""

import os

# NumPy and pydantic read these when they are imported. Both shorten the cold start.
# NumPy would start threads for linear algebra, which is not used here.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# pydantic would search every installed package for plug-ins.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

__version__ = "0.3.0"
