"""Settings are read from CLIP_* and validated once."""

import os
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
        "CLIP_DECODE_SECONDS": "0.5",
        "CLIP_DECODE_MB": "300",
        "CLIP_REQUEST_SECONDS": "4",
        "CLIP_BODY_SECONDS": "1e1",
        "CLIP_BASE_PATH": "/api/v1.2",
        "CLIP_PAGE": "off",
    }
    config = Config.from_env(env)
    assert config.model_dir == Path("/models/b32")
    assert (config.engine, config.threads, config.max_pixels) == ("torch", 2, 1000)
    assert config.max_images == Config().max_images
    assert config.s3_buckets == ("photos", "more.photos")
    assert config.output == "s3vectors://vectors/clip"
    assert config.cors_origins == ("https://shop.example", "http://localhost:5173")
    assert (config.decode_seconds, config.decode_mb, config.request_seconds) == (0.5, 300, 4.0)
    assert (config.body_seconds, config.base_path) == (10.0, "/api/v1.2")
    assert config.page == "off"


def test_by_default_no_bucket_is_read_nothing_is_written_and_no_page_may_call() -> None:
    assert (Config().s3_buckets, Config().output, Config().cors_origins) == ((), "caller", ())


def test_any_page_may_be_let_call() -> None:
    assert Config.from_env({"CLIP_CORS_ORIGINS": "*"}).cors_origins == ("*",)


@pytest.mark.parametrize(
    "output", ["caller", "s3://bbb", "s3://bbb/", "s3://bbb/a prefix/", "s3vectors://b-1/i.2"]
)
def test_every_form_of_output(output: str) -> None:
    assert Config.from_env({"CLIP_OUTPUT": output}).output == output


NO_SECONDS = ("0", "-1", "nan", "inf", "1e999")
NO_PATHS = ("images", "images/", "/", "/images/", "//images", "/a b", "/a?b", "/a#b")


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
        ("CLIP_PAGE", "yes", "CLIP_PAGE must be one of auto, on, off, not 'yes'"),
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
        *(("CLIP_DECODE_SECONDS", value, "finite number above 0") for value in NO_SECONDS),
        ("CLIP_BODY_SECONDS", "soon", "CLIP_BODY_SECONDS must be a number, not 'soon'"),
        ("CLIP_DECODE_MB", "0.5", "CLIP_DECODE_MB must be a whole number, not '0.5'"),
        *(("CLIP_BASE_PATH", path, "CLIP_BASE_PATH must be a path like") for path in NO_PATHS),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.from_env({name: value})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("CLIP_MAX_PIXEL", "CLIP_MAX_PIXELS"),
        ("CLIP_MAXIMAGES", "CLIP_MAX_IMAGES"),
        ("CLIP_ORIGINS", "CLIP_CORS_ORIGINS"),
        ("CLIP_", "CLIP_"),
        ("CLIP_PORT", "CLIP_"),  # the same name as Kubernetes' own, but a value of the user's
    ],
)
def test_a_variable_that_is_no_setting_is_named_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not a setting.* nearest is {nearest}"):
        Config.from_env({name: "3000"})


def test_what_kubernetes_says_of_a_service_called_clip_is_no_setting() -> None:
    """Every pod of the namespace gets these, the service's own included."""
    address = "tcp://10.0.0.1:3000"
    env = {
        "CLIP_SERVICE_HOST": "10.0.0.1",
        "CLIP_SERVICE_PORT": "3000",
        "CLIP_SERVICE_PORT_HTTP": "3000",
        "CLIP_PORT": address,
        "CLIP_PORT_3000_TCP": address,
        "CLIP_PORT_3000_TCP_PROTO": "tcp",
        "CLIP_PORT_3000_TCP_PORT": "3000",
        "CLIP_PORT_3000_TCP_ADDR": "10.0.0.1",
    }
    encoder = {name.replace("CLIP_", "CLIP_ENCODER_"): value for name, value in env.items()}
    assert Config.from_env(env | encoder) == Config()


@pytest.mark.parametrize(
    ("memory", "cpus"),
    [("0", 1), ("512", 1), ("1769", 1), ("2048", 1), ("2654", 2), ("3008", 2), ("3538", 2)],
)
def test_lambda_grants_cpus_by_memory(memory: str, cpus: int) -> None:
    assert available_cpus({"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": memory}) == cpus


def test_elsewhere_it_is_what_the_process_may_use(tmp_path: Path) -> None:
    assert available_cpus({}, cgroup=tmp_path) == len(os.sched_getaffinity(0))


ONE = {"cpu.max": "100000 100000\n"}
SHARE = {"cpu.max": "25000 100000\n"}
NOTHING = {"cpu.max": "0 100000\n"}
V1_ONE = {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "50000\n"}
V1_NOTHING = V1_ONE | {"cpu/cpu.cfs_quota_us": "0\n"}


@pytest.mark.parametrize("quota", [ONE, SHARE, NOTHING, V1_ONE, V1_NOTHING])
def test_a_containers_quota_is_kept_and_gives_one_cpu_at_least(
    tmp_path: Path, quota: dict[str, str]
) -> None:
    assert available_cpus({}, _cgroup(tmp_path, quota)) == 1


UNLIMITED = {"cpu.max": "max 100000\n"}
V1_UNLIMITED = V1_ONE | {"cpu/cpu.cfs_quota_us": "-1\n"}
GARBAGE = ("", "many few", "100000", "1 2 3", "100000 0")


@pytest.mark.parametrize("quota", [UNLIMITED, V1_UNLIMITED, *({"cpu.max": g} for g in GARBAGE)])
def test_a_quota_that_is_none_or_makes_no_sense_holds_nothing_back(
    tmp_path: Path, quota: dict[str, str]
) -> None:
    assert available_cpus({}, _cgroup(tmp_path, quota)) == len(os.sched_getaffinity(0))


def test_a_memory_size_that_makes_no_sense_does_not_stop_the_start(tmp_path: Path) -> None:
    env = {"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "plenty"}
    assert available_cpus(env, cgroup=tmp_path) == len(os.sched_getaffinity(0))


def _cgroup(folder: Path, files: dict[str, str]) -> Path:
    """A folder like /sys/fs/cgroup, of these files."""
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


# --- what `make mutants` found untested -----------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            {"CLIP_PRECISION": "fp8"},
            "CLIP_PRECISION must be one of fp32, int8, not 'fp8'",
        ),
        (
            {"CLIP_PROFILE": "slow"},
            "CLIP_PROFILE must be one of exact, fast, not 'slow'",
        ),
        (
            {"CLIP_PROFILE": "fast", "CLIP_ENGINE": "torch"},
            "CLIP_PROFILE=fast needs the onnx engine: set CLIP_ENGINE to onnx or auto",
        ),
        (
            {"CLIP_PREPROCESS": "raw"},
            "CLIP_PREPROCESS must be one of openai, corrected, not 'raw'",
        ),
        (
            {"CLIP_PRECISION": "int8", "CLIP_ENGINE": "torch"},
            "CLIP_PRECISION=int8 needs the onnx engine: set CLIP_ENGINE to onnx or auto",
        ),
        (
            {"CLIP_CORS_ORIGINS": "shop.example"},
            "CLIP_CORS_ORIGINS must hold * or origins like https://shop.example, "
            "not 'shop.example'",
        ),
    ],
)
def test_what_is_wrong_is_said_in_these_words(env: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_env(env)
    assert str(caught.value) == message


def test_a_profile_is_one_word_for_several_settings() -> None:
    def chosen(**env: str) -> tuple[str, int | None]:
        config = Config.from_env({f"CLIP_{name}": value for name, value in env.items()})
        return config.precision, config.jpeg_draft

    assert chosen() == chosen(PROFILE="exact") == chosen(PROFILE="") == ("fp32", 0)
    assert chosen(PROFILE="fast") == chosen(PROFILE=" fast ") == ("int8", None)
    assert chosen(PROFILE="fast", JPEG_DRAFT="0") == ("int8", 0)
    assert chosen(PROFILE="fast", PRECISION="fp32") == ("fp32", None)
    assert chosen(PROFILE="exact", JPEG_DRAFT="720") == ("fp32", 720)


@pytest.mark.parametrize("engine", ["onnx", "auto"])
def test_int8_goes_with_the_engine_that_has_it(engine: str) -> None:
    assert Config.from_env({"CLIP_PRECISION": "int8", "CLIP_ENGINE": engine}).engine == engine


def test_zero_is_a_value_where_it_means_no_limit() -> None:
    config = Config.from_env({"CLIP_JPEG_DRAFT": "0", "CLIP_THREADS": "0"})
    assert (config.jpeg_draft, config.threads) == (0, 0)


def test_a_variable_like_no_setting_is_refused_too() -> None:
    with pytest.raises(ConfigError, match="CLIP_ZZZ is not a setting of this service"):
        Config.from_env({"CLIP_ZZZ": "1"})


def test_a_process_held_to_one_cpu_uses_one(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})  # of this thread
    try:
        assert available_cpus({}, cgroup=tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_where_the_system_cannot_say_it_is_what_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    assert available_cpus({}, cgroup=tmp_path) == os.cpu_count()
    assert available_cpus({}, _cgroup(tmp_path, SHARE)) == 1


def test_where_the_kernel_refuses_to_say_it_is_what_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> set[int]:
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    assert available_cpus({}, cgroup=tmp_path) == os.cpu_count()
