"""OpenAI CLIP ViT-B/32 image embeddings as an AWS Lambda function and a web server.

Read the files in the order the data takes: ``main`` (event), ``app`` and ``direct`` (request and
response), ``schemas`` (bytes), ``encoder``, ``image`` (pixels), ``engines`` (embedding).
"""

__version__ = "0.1.0"
