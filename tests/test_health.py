"""What ``/health`` says of the processor. The rest of it is in `test_http` and `test_encoder`."""

from pathlib import Path

import pytest

from handler.health import cpu_features

# As Linux writes them, cut short.
ZEN_5 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
flags\t\t: fpu sse4_1 avx avx2 avx512f avx512bw avx_vnni avx512_bf16 avx512_vnni rdpid
bugs\t\t: sysret_ss_attrs

processor\t: 1
flags\t\t: fpu sse4_1 avx avx2 avx512f avx512bw avx_vnni avx512_bf16 avx512_vnni rdpid
"""
HASWELL = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) CPU E5-2666 v3 @ 2.90GHz, no avx512f
flags\t\t: fpu sse4_1 avx f16c avx2 erms
vmx flags\t: amx_int8
"""
GRAVITON_2 = """\
processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd crc32 atomics asimdhp lrcpc dcpop asimddp ssbs
CPU part\t: 0xd0c
"""
GRAVITON_3 = GRAVITON_2.replace("ssbs", "ssbs i8mm bf16")


@pytest.mark.parametrize(
    ("cpuinfo", "features"),
    [
        (ZEN_5, ["avx2", "avx512f", "avx_vnni", "avx512_vnni"]),
        (HASWELL, ["avx2"]),
        (GRAVITON_2, ["asimddp"]),
        (GRAVITON_3, ["asimddp", "i8mm"]),
        (GRAVITON_2.replace("ssbs", "svei8mm"), ["asimddp"]),  # another word, which has ours in it
        ("processor\t: 0\n", []),
        ("", []),
    ],
)
def test_the_features_are_the_kernels_words(
    cpuinfo: str, features: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(cpuinfo)
    assert cpu_features(file) == features


def test_where_the_kernel_says_nothing_there_are_none(tmp_path: Path) -> None:
    assert cpu_features(tmp_path / "cpuinfo") == []


def test_this_processor_has_some() -> None:
    """Every x86 that ONNX Runtime's wheels are fast on, and every arm64 of AWS, has one of them."""
    assert set(cpu_features()) & {"avx2", "asimddp"}
