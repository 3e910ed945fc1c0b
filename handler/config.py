"""Settings: ``CLIP_*`` environment variables, read and validated once at start-up."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

ENGINES = ("auto", "onnx", "torch")
PRECISIONS = ("fp32", "int8")
PROFILES = ("openai", "corrected")
ORIGIN = r"\*|https?://[A-Za-z0-9.-]+(:[0-9]+)?"
OUTPUTS = r"caller|s3://[a-z0-9.-]{3,63}(/.*)?|s3vectors://[a-z0-9.-]{3,63}/[a-z0-9.-]{3,63}"
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


class ConfigError(ValueError):
    """A setting that cannot be used; the text names the variable and what it accepts."""


@dataclass(frozen=True, slots=True)
class Config:
    """One field per setting; field ``max_pixels`` is read from ``CLIP_MAX_PIXELS``."""

    model_dir: Path = Path(__file__).parent.parent / "model"
    """The folder that ``python -m export`` wrote."""
    engine: str = "auto"
    """``onnx``, ``torch``, or ``auto``: torch where CUDA is usable, else onnx."""
    precision: str = "fp32"
    """``fp32``; ``int8`` is faster and less exact, and wants an export with ``--precision int8``.
    """
    preprocess: str = "openai"
    """``openai``: its pipeline bit for bit; ``corrected``: EXIF rotation, transparency on white, 16
    bits.
    """
    jpeg_draft: int = 720
    """JPEGs are decoded at 1/2, 1/4 or 1/8 while that leaves so many pixels on each side; 0: in
    full.
    """
    threads: int = 0
    """Compute threads of one inference; 0: as many as this process has CPUs."""
    max_body_bytes: int = 64 * 2**20
    """Largest HTTP body; Lambda itself stops at 6 MB."""
    max_image_bytes: int = 32 * 2**20
    """Largest encoded image, after base64 is undone."""
    max_pixels: int = 48 * 2**20
    """Largest image in pixels; 48 Mi is 8192 x 6144, the largest of "50-megapixel" phone cameras.
    """
    max_aspect_ratio: int = 100
    """Longest side over shortest: bounds the resized image, which pixels alone do not."""
    max_images: int = 32
    """Most images in one batch."""
    max_pending: int = 64
    """Most requests in progress or waiting; one more is answered 503 at once."""
    s3_buckets: tuple[str, ...] = ()
    """The buckets that images may be read from, with commas between; none by default."""
    output: str = "caller"
    """Where vectors of batch engines go: ``s3://bucket/prefix`` or ``s3vectors://bucket/index``."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages browsers let call the service, with commas between; ``*`` is any page."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Self:
        """Read ``CLIP_*`` from `env`.

        Raises:
            ConfigError: a variable holds a value that cannot be used.
        """
        values: dict[str, object] = {}
        for field in fields(cls):
            name = f"CLIP_{field.name.upper()}"
            if raw := env.get(name, "").strip():
                values[field.name] = _parse(name, raw, field.default)
        return cls(**values)  # type: ignore[arg-type]  # _parse gives each field's own type

    def __post_init__(self) -> None:
        """Refuse what no part of the service could work with."""
        _one_of("CLIP_ENGINE", self.engine, ENGINES)
        _one_of("CLIP_PRECISION", self.precision, PRECISIONS)
        if self.precision == "int8" and self.engine == "torch":
            raise ConfigError(
                "CLIP_PRECISION=int8 is of the onnx engine: set CLIP_ENGINE to onnx or auto"
            )
        _one_of("CLIP_PREPROCESS", self.preprocess, PROFILES)
        _one_of("CLIP_LOG_LEVEL", self.log_level, LOG_LEVELS)
        if not re.fullmatch(OUTPUTS, self.output):
            forms = "caller, s3://bucket/prefix or s3vectors://bucket/index"
            raise ConfigError(f"CLIP_OUTPUT must be {forms}, not {self.output!r}")
        for origin in self.cors_origins:
            if not re.fullmatch(ORIGIN, origin):
                raise ConfigError(
                    f"CLIP_CORS_ORIGINS must hold * or origins like https://shop.example, not {origin!r}"
                )
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("threads", "jpeg_draft") else 1
            if isinstance(value, int) and value < least:
                raise ConfigError(
                    f"CLIP_{field.name.upper()} must be at least {least}, not {value}"
                )


def _parse(name: str, raw: str, default: object) -> object:
    if isinstance(default, tuple):
        return tuple(filter(None, (item.strip() for item in raw.split(","))))
    if not isinstance(default, int):
        return type(default)(raw)  # type: ignore[call-arg]  # str or Path
    try:
        return int(raw)
    except ValueError:
        raise ConfigError(f"{name} must be a whole number, not {raw!r}") from None


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def available_cpus(env: Mapping[str, str] = os.environ) -> int:
    """CPUs this process may use, which is often fewer than the machine shows.

    Lambda shows two CPUs whatever it grants, which is one per 1,769 MB; elsewhere a container's
    quota hides behind the machine's count. Threads beyond the grant only wait for each other.
    """
    if memory := env.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE"):
        return min(max(1, round(int(memory) / 1769)), os.cpu_count() or 1)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cpus, round(_cgroup_cpus())))


def _cgroup_cpus() -> float:
    """The container's CPU quota (cgroup v2, then v1), infinite when there is none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text()
            period = Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return 1e9
    return 1e9 if quota.strip() in ("max", "-1") else int(quota) / int(period)
