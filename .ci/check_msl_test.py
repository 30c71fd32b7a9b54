# SPDX-License-Identifier: Apache-2.0
"""The check of the GPU kernels finds the mistakes that it is there to find."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import check_msl

KERNEL = """
struct Options {{ int size; }};
{before}
template <typename T>
KERNEL(64) scale(DEVICE_BUFFER(const T, in, 0), DEVICE_BUFFER(T, out, 1),
             ARGUMENTS(Options, options, {index}) THREAD_POSITIONS) {{
  DECLARE_POSITIONS
  THREADGROUP_ARRAY(float, shared, 32);
  const uint i = group_position.x * 32 + thread_index;
  shared[thread_index] = float(in[i]);
  THREADGROUP_BARRIER();
  {body}
  out[i] = T(simd_sum(shared[31 - thread_index]) * float(options.size));
}}
INSTANTIATE_KERNEL("scale_float", scale, float)
INSTANTIATE_KERNEL("scale_half", scale, half)
INSTANTIATE_KERNEL("scale_bfloat", scale, bfloat)
"""


def errors_of(folder: Path, body: str = "", before: str = "", index: int = 2) -> str:
    source = folder / "kernel.metal"
    source.write_text(KERNEL.format(body=body, before=before, index=index), encoding="utf-8")
    files = [check_msl.PRELUDE, check_msl.KERNELS / "kernel_arguments.h", source]
    return "\n".join(check_msl.check(files, []))


def test_the_kernels_pass():
    assert check_msl.check(check_msl.kernel_files(), check_msl.instantiations()) == []


def test_a_front_end_is_here():
    assert check_msl.front_end() is not None


def test_a_correct_kernel_passes(tmp_path):
    assert errors_of(tmp_path, "for (int k = 0; k < options.size; ++k) shared[k] += 1.0f;") == ""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("DEVICE_POINTER(float) p = shared;", "__local"),
        ("THREADGROUP_POINTER(const T) p = in;", "__global"),
        ("device float* p = shared; p[0] = 1.0f;", "__local"),
        ("shared[0] = fast_exp(1.0f);", "undeclared identifier 'fast_exp'"),
        ("shared[0] = metal::fast::exp3(1.0f);", "no member named 'exp3'"),
        ("options.size = 1;", "read-only variable is not assignable"),
        ("out[0] = in[0] + options.length;", "no member named 'length'"),
        ("half2 pair; shared[0] = pair.z;", "vector component access exceeds type"),
        ("in[0] = T(1.0f);", "read-only variable is not assignable"),
        ("simdgroup_matrix<float, 8, 4> m;", "simdgroup_matrix is 8 x 8"),
        ("float values[2]; read_values<2>(values, shared);", "no matching function"),
        ("float* p = out;", "kernel.metal:12: error: p is a pointer or reference without"),
        ("shared[0] = double(1.0f);", "kernel.metal:12: error: Metal has no double"),
        ("shared[0] = 1.0f;  // 1 \u00b5s", "kernel.metal:12: error: MLX hands the text"),
        ("if constexpr (true) shared[0] = 1.0f;", "incompatible with C++ standards before C++17"),
    ],
)
def test_mistakes_in_a_kernel_are_found_where_they_are(tmp_path, body, expected):
    errors = errors_of(tmp_path, body)
    assert expected in errors
    assert "kernel.metal:12" in errors


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("FUNC float first(float* x) { return x[0]; }", "x is a pointer or reference without"),
        ("FUNC void count(int& x) { ++x; }", "x is a pointer or reference without"),
        ("FUNC int lane([[thread_index_in_simd]] uint i) { return i; }", "unknown attribute"),
        ("constexpr int kSize = sizeof(int) == 4 ? kMissing : 1;", "'kMissing'"),
        ("#include <vector>", "no error"),
    ],
)
def test_mistakes_outside_of_kernels_are_found(tmp_path, before, expected):
    assert expected in (errors_of(tmp_path, before=before) or "no error")


def test_a_buffer_index_used_twice_is_found(tmp_path):
    assert "scale uses a buffer index twice" in errors_of(tmp_path, index=1)


def test_the_list_of_sources_is_whole():
    listed = (check_msl.KERNELS / "sources.txt").read_text(encoding="utf-8").split()
    there = {path.name for path in check_msl.KERNELS.glob("*.metal")}
    assert sorted(listed) == sorted([*there, "kernel_arguments.h"])


def test_every_kernel_is_instantiated():
    sources = (path.read_text(encoding="utf-8") for path in check_msl.KERNELS.glob("*.metal"))
    there = {match[1] for text in sources for match in check_msl.KERNEL.finditer(text)}
    asked = {line.split(", ")[1] for line in check_msl.instantiations()}
    assert asked == there


def test_kernels_are_instantiated_as_far_as_the_registers_reach():
    text = (check_msl.KERNELS / "kernel_arguments.h").read_text(encoding="utf-8")
    assert f"kDecodeMaxValues = {check_msl.DECODE_MAX_VALUES}," in text


def test_without_a_front_end_the_text_is_looked_at(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check_msl, "front_end", lambda: None)
    assert "Metal has no double" in errors_of(tmp_path, "shared[0] = double(1.0f);")
    assert "neither clang-tidy nor clang is here" in capsys.readouterr().out
