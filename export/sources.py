"""Find the weights of OpenAI's models: on this machine, or at the first source that has them.

Each model has two files of the same numbers: OpenAI's own, and the one that the organisation
``openai`` published on Hugging Face. Either is known by its sha256, so it does not matter where a
file comes from or what it is called.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from export import ExportError, download, hub
from export.download import sha256_of
from handler.model import Architecture

T = TypeVar("T")

CACHE = Path("~/.cache/clip").expanduser()
"""Where ``clip.load`` keeps its downloads, so that one download serves both."""
SERVERS = (
    "https://openaipublic.azureedge.net/clip/models",
    "https://openaipublic.blob.core.windows.net/clip/models",
)
"""OpenAI's address, which ``clip.load`` asks, and the storage behind it."""


@dataclass(frozen=True)
class Official:
    """One of OpenAI's models."""

    file: str
    """Name of OpenAI's own file, a TorchScript archive of 16-bit numbers."""
    sha256: str
    """Hex digest of OpenAI's own file. It names these weights in fingerprints."""
    architecture: Architecture
    hub: hub.File
    """The same numbers on Hugging Face, in 32 bits."""

    @property
    def names(self) -> dict[str, str]:
        """The sha256 of each of the two files, and its name in clip's cache."""
        return {self.sha256: self.file, self.hub.sha256: self.hub.unique}

    @property
    def urls(self) -> list[str]:
        """Where OpenAI serves its own file."""
        return [f"{server}/{self.sha256}/{self.file}" for server in SERVERS]


VIT_B_32 = Architecture(
    embedding_size=512,
    resolution=224,
    image_layers=12,
    image_width=768,
    patch=32,
    context_length=77,
    vocabulary=49408,
    text_width=512,
    text_heads=8,
    text_layers=12,
)
VIT_L_14 = VIT_B_32._replace(
    embedding_size=768, image_layers=24, image_width=1024, patch=14, text_width=768, text_heads=12
)
DEFAULT = "ViT-B/32"
MODELS = {
    DEFAULT: Official(
        "ViT-B-32.pt",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        VIT_B_32,
        hub.File(
            "openai/clip-vit-base-patch32",
            "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
            "pytorch_model.bin",
            "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
        ),
    ),
    "ViT-B/16": Official(
        "ViT-B-16.pt",
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
        VIT_B_32._replace(patch=16),
        hub.File(
            "openai/clip-vit-base-patch16",
            "57c216476eefef5ab752ec549e440a49ae4ae5f3",
            "pytorch_model.bin",
            "ec89c7b09c749a60aae3c9cd910516f24b58214a7df060b48962d14c469cfbf0",
        ),
    ),
    "ViT-L/14": Official(
        "ViT-L-14.pt",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        VIT_L_14,
        hub.File(
            "openai/clip-vit-large-patch14",
            "32bd64288804d66eefd0ccbe215aa642df71cc41",
            "model.safetensors",
            "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        ),
    ),
    "ViT-L/14@336px": Official(
        "ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        VIT_L_14._replace(resolution=336),
        hub.File(
            "openai/clip-vit-large-patch14-336",
            "ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
            "pytorch_model.bin",
            "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
        ),
    ),
}
"""clip's own names of its models with a vision transformer."""


class NoSourceError(ExportError):
    """No source has the weights; the text lists each with its reason, and says what to do."""


def official_of(path: Path) -> str | None:
    """Name the model of OpenAI's whose file this is, whatever it is called; None: of none."""
    if not path.is_file():
        return None
    digest = sha256_of(path)
    return next((name for name, model in MODELS.items() if digest in model.names), None)


def obtain(name: str, read: Callable[[Path], T]) -> T:
    """Return what `read` makes of the first file of the model `name` that is found and readable.

    Files on this machine come first: clip's cache, the working directory, Hugging Face's cache.
    Then come the mirror that ``WEIGHTS_URL`` names, OpenAI's addresses, and Hugging Face. A line is
    printed for each source that fails.

    Raises:
        NoSourceError: all of them failed.
    """
    failures = []
    for where, get in _sources(name):
        try:
            path = get()
            if path is None:
                continue
            print(f"weights     {where}")
            return _read(path, read)
        except (ExportError, OSError) as error:
            failures.append(f"{where}: {error}")
            print(f"no weights  {failures[-1]}", flush=True)
    raise NoSourceError(_help(name, failures))


Source = tuple[str, Callable[[], Path | None]]
"""Its name, and what gives its file; None: it has none."""


def _sources(name: str) -> Iterator[Source]:
    official = MODELS[name]
    here = [Path(official.file), Path(official.hub.name), Path(official.hub.unique)]
    for path in [CACHE / file for file in official.names.values()] + here:
        yield str(path), partial(_local, path, name)
    cached = f"Hugging Face's cache, {official.hub}"
    yield cached, partial(hub.cached, official.hub)
    if mirror := os.environ.get("WEIGHTS_URL"):
        # Either of the model's two files: the address may be of one, or of a folder.
        address = mirror + official.file if mirror.endswith("/") else mirror
        yield f"WEIGHTS_URL, {address}", partial(download.fetch, address, official.names, CACHE)
    for url in official.urls:
        yield url, partial(download.fetch, url, official.names, CACHE)
    yield f"Hugging Face, {official.hub}", partial(hub.fetch, official.hub)


def _local(path: Path, name: str) -> Path | None:
    if not path.is_file():
        return None
    if official_of(path) != name:
        raise ExportError(f"not a file of {name}: its sha256 is another")
    return path


def _read(path: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(path)
    except ExportError as error:
        raise ExportError(f"the file is whole, but cannot be read here: {error}") from error


def _help(name: str, failures: list[str]) -> str:
    official = MODELS[name]
    again = "make model" if name == DEFAULT else f"make model MODEL={name}"
    tried = "\n".join(f"  - {failure}" for failure in failures)
    return f"""\
No source had the weights of {name}:
{tried}
Fetch {official.file} or Hugging Face's {official.hub.name} on a machine that can reach one of them,
put it beside the Dockerfile, and run: {again}"""
