// SPDX-License-Identifier: Apache-2.0
#include "weights/weight_store.h"

#include <gmock/gmock.h>

#include <fstream>
#include <numeric>
#include <stdexcept>

#include "support/error_of.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"

namespace vllm_metal {
namespace {

using test::error_of;
using test::TempDir;
using testing::AllOf;
using testing::HasSubstr;

mx::array counting(mx::Shape shape, mx::Dtype dtype, float start = 0) {
  const int size = std::accumulate(shape.begin(), shape.end(), 1, std::multiplies<>());
  mx::array array =
      mx::astype(mx::reshape(mx::arange(start, start + static_cast<float>(size)), shape), dtype);
  array.eval();
  return array;
}

bool same_array(const mx::array& a, const mx::array& b) {
  return a.dtype() == b.dtype() && mx::array_equal(a, b).item<bool>();
}

TEST(WeightStore, TakesTensorsByNameAndConvertsFloats) {
  TempDir dir;
  const mx::array a = counting({3, 4}, mx::float16), b = counting({5}, mx::uint32);
  test::write_safetensors(dir.path() / "model.safetensors", {{"a", a}, {"b", b}});
  WeightStore store(dir.path());
  EXPECT_EQ(store.total_bytes(), 3 * 4 * 2 + 5 * 4u);
  EXPECT_TRUE(same_array(store.take("a", {3, 4}, mx::float32), mx::astype(a, mx::float32)));
  EXPECT_TRUE(same_array(store.take("b", {5}), b));
  EXPECT_NO_THROW(store.expect_empty());
}

TEST(WeightStore, FusesRowsBelowRows) {
  TempDir dir;
  const mx::array q = counting({4, 8}, mx::bfloat16), k = counting({2, 8}, mx::bfloat16, 50);
  test::write_safetensors(dir.path() / "model.safetensors", {{"q", q}, {"k", k}});
  WeightStore store(dir.path());
  const std::vector<std::string> names{"q", "k"};
  const std::vector<int64_t> rows{4, 2};
  EXPECT_TRUE(same_array(store.take_fused(names, rows, 8), mx::concatenate({q, k}, 0)));
}

TEST(WeightStore, ReadsShards) {
  TempDir dir;
  const mx::array a = counting({2, 2}, mx::float32), b = counting({3}, mx::float32);
  test::write_safetensors(dir.path() / "one.safetensors", {{"a", a}});
  test::write_safetensors(dir.path() / "two.safetensors", {{"b", b}});
  dir.write("model.safetensors.index.json",
            R"({"metadata":{},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  WeightStore store(dir.path());
  EXPECT_TRUE(same_array(store.take("a", {2, 2}), a));
  EXPECT_TRUE(same_array(store.take("b", {3}), b));
}

TEST(WeightStore, RefusesShardsOutsideTheFolderAndLies) {
  TempDir dir;
  test::write_safetensors(dir.path() / "one.safetensors", {{"a", counting({2}, mx::float32)}});
  for (const char* shard : {"../one.safetensors", "/etc/passwd", "..", ""}) {
    dir.write("model.safetensors.index.json",
              std::string(R"({"weight_map":{"a":")") + shard + R"("}})");
    EXPECT_THAT(error_of([&] { WeightStore store(dir.path()); }),
                HasSubstr("not the name of a file beside it"));
  }
  dir.write("model.safetensors.index.json", R"({"weight_map":{"missing":"one.safetensors"}})");
  EXPECT_THAT(error_of([&] { WeightStore store(dir.path()); }),
              AllOf(HasSubstr("missing"), HasSubstr("one.safetensors")));
  dir.write("model.safetensors.index.json", R"({"weight_map":{"a":"gone.safetensors"}})");
  EXPECT_THAT(error_of([&] { WeightStore store(dir.path()); }), HasSubstr("gone.safetensors"));
  dir.write("model.safetensors.index.json", "{");
  EXPECT_THAT(error_of([&] { WeightStore store(dir.path()); }), HasSubstr("index.json"));
}

TEST(WeightStore, RefusesDuplicatesAcrossShards) {
  TempDir dir;
  test::write_safetensors(dir.path() / "one.safetensors", {{"a", counting({2}, mx::float32)}});
  test::write_safetensors(dir.path() / "two.safetensors",
                          {{"a", counting({2}, mx::float32)}, {"b", counting({2}, mx::float32)}});
  dir.write("model.safetensors.index.json",
            R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  EXPECT_THAT(error_of([&] { WeightStore store(dir.path()); }), HasSubstr("again in"));
}

TEST(WeightStore, NamesWhatIsMissingMisshapedOrLeft) {
  TempDir dir;
  test::write_safetensors(dir.path() / "model.safetensors", {{"a", counting({2, 3}, mx::float32)},
                                                             {"h", counting({1, 3}, mx::float16)},
                                                             {"i", counting({2}, mx::uint32)}});
  WeightStore store(dir.path());
  EXPECT_THAT(error_of([&] { store.take("nope", {1}); }), HasSubstr("tensor nope is missing"));
  EXPECT_THAT(error_of([&] { store.take("a", {3, 2}); }),
              AllOf(HasSubstr("[3, 2]"), HasSubstr("[2, 3]")));
  const std::vector<std::string> names{"a", "h"};
  const std::vector<int64_t> rows{2, 1};
  EXPECT_THAT(error_of([&] { store.take_fused(names, rows, 3); }), HasSubstr("same dtype"));
  EXPECT_THAT(error_of([&] { store.take("i", {2}, mx::float32); }),
              AllOf(HasSubstr("tensor i in "), HasSubstr("model.safetensors must have numbers of "
                                                         "floating point but has U32.")));
  store.skip("i");
  EXPECT_THAT(error_of([&] { store.expect_empty(); }),
              AllOf(HasSubstr("2 tensors"), HasSubstr("a, h")));
  store.skip("a");
  store.skip("h");
  EXPECT_NO_THROW(store.expect_empty());
}

TEST(WeightStore, NamesAFolderWithoutWeights) {
  TempDir dir;
  EXPECT_THAT(error_of([&] { WeightStore store(dir.path()); }),
              HasSubstr("neither model.safetensors nor"));
}

TEST(WeightStore, NamesAFileThatShrinksWhileItIsRead) {
  TempDir dir;
  const auto path = dir.path() / "model.safetensors";
  test::write_safetensors(path, {{"a", counting({1000}, mx::float32)}});
  WeightStore store(dir.path());
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 100);
  EXPECT_THAT(error_of([&] { store.take("a", {1000}); }), HasSubstr("became shorter"));
}

TEST(WeightStore, ReportsProgressUpToTheTotal) {
  TempDir dir;
  test::write_safetensors(dir.path() / "model.safetensors", {{"a", counting({100}, mx::float32)},
                                                             {"b", counting({50}, mx::float32)}});
  uint64_t last = 0, total = 0;
  WeightStore store(dir.path(), {.progress = [&](uint64_t done, uint64_t all) {
                      EXPECT_GT(done, last);
                      last = done;
                      total = all;
                    }});
  store.take("a", {100});
  store.take("b", {50});
  EXPECT_EQ(last, 600u);
  EXPECT_EQ(total, 600u);
}

// Peak resident set of this process since the last reset, bytes; Linux only.
size_t peak_resident_bytes() {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("VmHWM:")) return std::stoull(line.substr(6)) * 1024;
  return 0;
}

TEST(WeightStore, PeakMemoryIsWeightsPlusOneTensor) {
  if (!std::ofstream("/proc/self/clear_refs").good()) GTEST_SKIP() << "needs /proc";
  TempDir dir;
  constexpr int kTensors = 12, kRows = 8192, kColumns = 1024;  // 32 MiB each in float32
  constexpr size_t kTensorBytes = size_t{kRows} * kColumns * 4, kMargin = size_t{200} << 20;
  {
    std::map<std::string, mx::array> tensors;
    const mx::array tensor = mx::zeros({kRows, kColumns}, mx::float32);
    for (int i = 0; i < kTensors; ++i) tensors.emplace("t" + std::to_string(i), tensor);
    test::write_safetensors(dir.path() / "model.safetensors", tensors);
  }
  mx::synchronize();
  mx::clear_cache();
  std::ofstream("/proc/self/clear_refs") << "5";
  mx::reset_peak_memory();
  const size_t resident_before = peak_resident_bytes(), active_before = mx::get_active_memory();
  WeightStore store(dir.path());
  std::vector<mx::array> kept;
  for (int i = 0; i < kTensors; i += 2) {
    const std::vector<std::string> names{"t" + std::to_string(i), "t" + std::to_string(i + 1)};
    const std::vector<int64_t> rows{kRows, kRows};
    kept.push_back(store.take_fused(names, rows, kColumns, mx::float16));  // fused and converted
  }
  const size_t weights = kept.size() * kTensorBytes;  // two tensors at half the size
  const size_t largest = 2 * kTensorBytes;
  EXPECT_LE(mx::get_peak_memory() - active_before, weights + largest);
  EXPECT_LE(peak_resident_bytes() - resident_before, weights + largest + kMargin);
}

}  // namespace
}  // namespace vllm_metal
