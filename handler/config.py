"""Settings: ``CLIP_*`` environment variables, read and validated once at start-up."""

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from handler.precision import EXPORTED

ENGINES = ("auto", "onnx", "torch")
TOWERS = ("image", "text")
PREPROCESSES = ("openai", "corrected")
PROFILES: dict[str, dict[str, object]] = {
    "exact": {"precision": "fp32", "jpeg_draft": 0},
    "fast": {"precision": "int8", "jpeg_draft": None},
}
"""What ``CLIP_PROFILE`` chooses by one word. A setting that is given itself has its own value."""
JPEG_DRAFT = 720 / 224
"""How many times the model's side a JPEG keeps in profile ``fast``: 720 pixels of a model that sees
224, for which it was measured."""
ORIGIN = r"\*|https?://[A-Za-z0-9.-]+(:[0-9]+)?"
OUTPUTS = r"caller|s3://[a-z0-9.-]{3,63}(/.*)?|s3vectors://[a-z0-9.-]{3,63}/[a-z0-9.-]{3,63}"
BASE_PATH = r"(/[^/?#\s]+)+"
PAGES = ("auto", "on", "off")
SANDBOXES = ("auto", "required")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

KUBERNETES = (
    r"CLIP_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)=.*|PORT=\w+://.*|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=.*)"
)
"""``NAME=value`` as Kubernetes sets it in every pod where a Service's name begins with ``clip``."""

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux shows a container its limits."""


class ConfigError(ValueError):
    """A setting that cannot be used; the text names the variable and what it accepts."""


@dataclass(frozen=True, slots=True)
class Config:
    """One field per setting; field ``max_pixels`` is read from ``CLIP_MAX_PIXELS``."""

    model_dir: Path = Path(__file__).parent.parent / "model"
    """The folder that ``python -m export`` wrote."""
    model: str = ""
    """The model that the folder must hold, as fingerprints name it, such as ``ViT-L-14-336px``. By
    default any."""
    towers: tuple[str, ...] = ()
    """``image``, ``text``, or both with a comma between: what is served. By default, what the model
    folder holds."""
    engine: str = "auto"
    """``onnx``, ``torch``, or ``auto``: torch where CUDA is usable, else onnx."""
    profile: str = "exact"
    """``exact``: the vectors of OpenAI's ``clip``. ``fast``: near them, in a third of the time."""
    precision: str = "fp32"
    """``fp32`` or ``int8``. int8 is faster and less exact; it needs an export that made it."""
    preprocess: str = "openai"
    """``openai``: exactly the pixels of OpenAI's ``clip``. ``corrected``: EXIF rotation is applied,
    transparency is put on white and 16-bit grey is scaled."""
    jpeg_draft: int | None = 0
    """A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size if both sides keep at least this many
    pixels. 0: always at full size. None, which only a profile has: `JPEG_DRAFT` says how many."""
    threads: int = 0
    """Compute threads of one inference; 0: as many as this process has CPUs."""
    max_body_bytes: int = 64 * 2**20
    """Largest HTTP body; Lambda itself stops at 6 MB."""
    max_image_bytes: int = 32 * 2**20
    """Largest encoded image, after base64 is undone."""
    max_pixels: int = 48 * 2**20
    """Largest image in pixels. 48 Mi are 8192 x 6144, which "50-megapixel" phone cameras make."""
    max_aspect_ratio: int = 100
    """Longest side over shortest: bounds the resized image, which pixels alone do not."""
    max_images: int = 32
    """Most images in one batch."""
    max_texts: int = 256
    """Most texts in one batch."""
    max_pending: int = 64
    """Most requests in progress or waiting; one more is answered 503 at once."""
    decode_seconds: float = 2.0
    """CPU seconds that decoding one image may take."""
    decode_mb: int = 512
    """Megabytes of memory that decoding one image may take."""
    sandbox: str = "auto"
    """``auto``: decoders are confined as far as the kernel allows. ``required``: the service starts
    only where every wall around them holds."""
    request_seconds: float = 8.0
    """CPU seconds that decoding all images of one request may take."""
    body_seconds: float = 30.0
    """Seconds within which a request's body must have arrived."""
    base_path: str = ""
    """The path under which a gateway or proxy serves this service, such as ``/images``."""
    s3_buckets: tuple[str, ...] = ()
    """The buckets that images may be read from, with commas between; none by default."""
    output: str = "caller"
    """Where vectors of batch engines go: ``s3://bucket/prefix`` or ``s3vectors://bucket/index``."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages browsers let call the service, with commas between; ``*`` is any page."""
    page: str = "auto"
    """Whether ``/`` is a page to try the service on: ``on``, ``off``; ``auto``: not on Lambda."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Self:
        """Read ``CLIP_*`` from `env`. A variable that is empty counts as not set.

        Raises:
            ConfigError: a variable is not a setting, or holds a value that cannot be used.
        """
        settings = {f"CLIP_{field.name.upper()}": field for field in fields(cls)}
        for name, value in env.items():
            if name.startswith("CLIP_") and name not in settings:
                _refuse_unknown(name, value, settings)
        # An unknown profile has no values; `__post_init__` refuses it.
        values = dict(PROFILES.get(env.get("CLIP_PROFILE", "").strip(), {}))
        for name, field in settings.items():
            if raw := env.get(name, "").strip():
                values[field.name] = _parse(name, raw, field.default)
        return cls(**values)  # type: ignore[arg-type]  # _parse gives each field's own type

    def jpeg_draft_for(self, side: int) -> int:
        """`jpeg_draft` in pixels, for a model that sees a square of `side` pixels."""
        return round(JPEG_DRAFT * side) if self.jpeg_draft is None else self.jpeg_draft

    def __post_init__(self) -> None:
        """Refuse what no part of the service could work with."""
        for tower in self.towers:
            _one_of("CLIP_TOWERS", tower, TOWERS)
        _one_of("CLIP_ENGINE", self.engine, ENGINES)
        _one_of("CLIP_PROFILE", self.profile, PROFILES)
        _one_of("CLIP_PRECISION", self.precision, EXPORTED)
        if self.precision == "int8" and self.engine == "torch":
            asked = "CLIP_PROFILE=fast" if self.profile == "fast" else "CLIP_PRECISION=int8"
            raise ConfigError(f"{asked} needs the onnx engine: set CLIP_ENGINE to onnx or auto")
        _one_of("CLIP_PREPROCESS", self.preprocess, PREPROCESSES)
        _one_of("CLIP_PAGE", self.page, PAGES)
        _one_of("CLIP_SANDBOX", self.sandbox, SANDBOXES)
        _one_of("CLIP_LOG_LEVEL", self.log_level, LOG_LEVELS)
        if not re.fullmatch(OUTPUTS, self.output):
            forms = "caller, s3://bucket/prefix or s3vectors://bucket/index"
            raise ConfigError(f"CLIP_OUTPUT must be {forms}, not {self.output!r}")
        if self.base_path and not re.fullmatch(BASE_PATH, self.base_path):
            form = "a path like /images, which begins with / and does not end with one"
            raise ConfigError(f"CLIP_BASE_PATH must be {form}, not {self.base_path!r}")
        for origin in self.cors_origins:
            if not re.fullmatch(ORIGIN, origin):
                form = "* or origins like https://shop.example"
                raise ConfigError(f"CLIP_CORS_ORIGINS must hold {form}, not {origin!r}")
        for field in fields(self):
            _in_range(field.name, getattr(self, field.name))


def _refuse_unknown(name: str, value: str, settings: Iterable[str]) -> None:
    if re.fullmatch(KUBERNETES, f"{name}={value}"):
        return  # nobody meant it as a setting
    import difflib  # here, because a right environment never needs it

    (nearest,) = difflib.get_close_matches(name, settings, n=1, cutoff=0)
    raise ConfigError(f"{name} is not a setting of this service; the nearest is {nearest}")


def _parse(name: str, raw: str, default: object) -> object:
    """`raw` as a value of the type that `default` has."""
    if isinstance(default, tuple):
        return tuple(filter(None, (item.strip() for item in raw.split(","))))
    kind = type(default)
    try:
        return kind(raw)  # type: ignore[call-arg]  # int, float, str or Path
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{name} must be {wanted}, not {raw!r}") from None


def _in_range(field: str, value: object) -> None:
    """Refuse numbers that mean nothing; other values pass."""
    name = f"CLIP_{field.upper()}"
    least = 0 if field in ("threads", "jpeg_draft") else 1
    if isinstance(value, int) and value < least:
        raise ConfigError(f"{name} must be at least {least}, not {value}")
    # Written so that NaN, which compares with nothing, is refused too.
    if isinstance(value, float) and not 0 < value < math.inf:
        raise ConfigError(f"{name} must be a finite number above 0, not {value}")


def _one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def on_lambda(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a Lambda function's."""
    return bool(env.get("AWS_LAMBDA_FUNCTION_NAME"))


def starts_ahead(env: Mapping[str, str] = os.environ) -> bool:
    """Return True if Lambda starts this process before anybody waits for it: for a snapshot, or as
    provisioned concurrency.
    """
    return env.get("AWS_LAMBDA_INITIALIZATION_TYPE") in ("snap-start", "provisioned-concurrency")


def available_cpus(env: Mapping[str, str] = os.environ, cgroup: Path = CGROUP) -> int:
    """CPUs that this process may use, at least 1. They are often fewer than the machine shows.

    Lambda shows two CPUs or more whatever it grants, which is one for each 1,769 MB. Elsewhere a
    container has a quota that the machine's count does not show. More threads than that only wait
    for each other.
    """
    memory = env.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "")
    if memory.isdecimal():
        granted, shown = int(memory) / 1769, os.cpu_count() or 1
    else:
        granted, shown = _cgroup_cpus(cgroup), _shown_cpus()
    return max(1, round(min(granted, shown)))  # a share of a CPU is below one half, or 0


def _shown_cpus() -> int:
    """The CPUs that the system lets this process run on or, where it does not tell, all of them."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS; a filter of system calls
        return os.cpu_count() or 1


def _cgroup_cpus(cgroup: Path) -> float:
    """The container's CPU quota in CPUs, infinite when there is none or it cannot be understood."""
    try:
        if (cgroup / "cpu.max").exists():  # cgroup v2
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        if int(quota) < 0:
            return math.inf
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no files, "max", no sense
        return math.inf
