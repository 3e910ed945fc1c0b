"""Settings are read from CLIP_* and validated once."""

from pathlib import Path

import pytest

from handler.config import Config, ConfigError, available_cpus


def test_defaults_let_a_phone_photograph_through() -> None:
    config = Config.from_env({})
    assert config == Config()
    assert config.max_pixels >= 8192 * 6144  # "50 megapixels"
    assert config.max_body_bytes > config.max_image_bytes * 4 / 3  # its base64 fits


def test_every_setting_is_read() -> None:
    env = {
        "CLIP_MODEL_DIR": "/models/b32",
        "CLIP_ENGINE": "torch",
        "CLIP_THREADS": "2",
        "CLIP_MAX_PIXELS": "1000",
        "CLIP_LOG_LEVEL": "DEBUG",
        "CLIP_MAX_IMAGES": "",  # empty is unset, as compose files write it
        "CLIP_S3_BUCKETS": " photos, more.photos,,",
        "CLIP_OUTPUT": "s3vectors://vectors/clip",
        "CLIP_CORS_ORIGINS": "https://shop.example, http://localhost:5173",
    }
    config = Config.from_env(env)
    assert config.model_dir == Path("/models/b32")
    assert (config.engine, config.threads, config.max_pixels) == ("torch", 2, 1000)
    assert config.max_images == Config().max_images
    assert config.s3_buckets == ("photos", "more.photos")
    assert config.output == "s3vectors://vectors/clip"
    assert config.cors_origins == ("https://shop.example", "http://localhost:5173")


def test_by_default_no_bucket_is_read_nothing_is_written_and_no_page_may_call() -> None:
    assert (Config().s3_buckets, Config().output, Config().cors_origins) == ((), "caller", ())


def test_any_page_may_be_let_call() -> None:
    assert Config.from_env({"CLIP_CORS_ORIGINS": "*"}).cors_origins == ("*",)


@pytest.mark.parametrize(
    "output", ["caller", "s3://bbb", "s3://bbb/", "s3://bbb/a prefix/", "s3vectors://b-1/i.2"]
)
def test_every_form_of_output(output: str) -> None:
    assert Config.from_env({"CLIP_OUTPUT": output}).output == output


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CLIP_ENGINE", "cuda", "CLIP_ENGINE must be one of auto, onnx, torch, not 'cuda'"),
        ("CLIP_MAX_PIXELS", "many", "CLIP_MAX_PIXELS must be a whole number, not 'many'"),
        ("CLIP_MAX_IMAGES", "0", "CLIP_MAX_IMAGES must be at least 1, not 0"),
        ("CLIP_THREADS", "-1", "CLIP_THREADS must be at least 0, not -1"),
        (
            "CLIP_OUTPUT",
            "vectors/run",
            "CLIP_OUTPUT must be caller, s3://bucket/prefix or s3vectors://",
        ),
        ("CLIP_OUTPUT", "s3://", "CLIP_OUTPUT must be"),
        ("CLIP_OUTPUT", "s3://ab", "CLIP_OUTPUT must be"),
        ("CLIP_OUTPUT", "s3vectors://bucket/ab", "CLIP_OUTPUT must be"),
        ("CLIP_OUTPUT", "s3vectors://bucket", "CLIP_OUTPUT must be"),
        ("CLIP_OUTPUT", "s3vectors://bucket/index/more", "CLIP_OUTPUT must be"),
        ("CLIP_LOG_LEVEL", "chatty", "CLIP_LOG_LEVEL must be one of"),
        ("CLIP_CORS_ORIGINS", "shop.example", "CLIP_CORS_ORIGINS must hold .* not 'shop.example'"),
        (
            "CLIP_CORS_ORIGINS",
            "https://a.example/",
            "CLIP_CORS_ORIGINS must hold",
        ),  # browsers send no slash
        (
            "CLIP_CORS_ORIGINS",
            "https://a.example,https://*.b.example",
            "CLIP_CORS_ORIGINS must hold",
        ),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.from_env({name: value})


@pytest.mark.parametrize(
    ("memory", "cpus"), [("512", 1), ("1769", 1), ("2048", 1), ("3008", 2), ("3538", 2)]
)
def test_lambda_grants_cpus_by_memory(memory: str, cpus: int) -> None:
    assert available_cpus({"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": memory}) == cpus


def test_elsewhere_it_is_what_the_process_may_use() -> None:
    assert available_cpus({}) >= 1
