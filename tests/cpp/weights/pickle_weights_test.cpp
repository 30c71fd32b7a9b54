// SPDX-License-Identifier: Apache-2.0
// Files that somebody else reads: here a reader that looks the tensors up by the file's name.
#include <gmock/gmock.h>

#include <fstream>
#include <stdexcept>

#include "support/error_of.h"
#include "support/temp_dir.h"
#include "support/tiny_llama.h"
#include "weights/weight_store.h"

namespace vllm_metal {
namespace {

using test::error_of;
using test::TempDir;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

mx::array counting(const mx::Shape& shape, mx::Dtype dtype, int start = 0) {
  int size = 1;
  for (const int extent : shape) size *= extent;
  mx::array array = mx::astype(mx::reshape(mx::arange(start, start + size), shape), dtype);
  array.eval();
  return array;
}

bool same_array(const mx::array& a, const mx::array& b) {
  return a.dtype() == b.dtype() && mx::array_equal(a, b).item<bool>();
}

// A folder with files that hold what the test says, and how often each was read.
struct PickleDir {
  TempDir dir;
  std::map<std::string, std::vector<NamedTensor>> files;
  std::vector<std::string> read = {};

  void add(const std::string& file, std::vector<NamedTensor> tensors) {
    dir.write(file, "bytes that the core never looks at");
    files[file] = std::move(tensors);
  }
  LoadCallbacks callbacks() {
    return {.read_pickle = [this](const std::filesystem::path& path) {
      read.push_back(path.filename());
      return files.at(path.filename());
    }};
  }
  std::string error() {
    return error_of([this] { WeightStore store(dir.path(), callbacks()); });
  }
};

TEST(PickleWeights, AreTakenLikeThoseOfSafetensors) {
  PickleDir model;
  const mx::array a = counting({3, 4}, mx::bfloat16), b = counting({2, 4}, mx::bfloat16, 50);
  mx::array transposed = mx::transpose(counting({5, 3}, mx::float32));
  transposed.eval();
  model.add("pytorch_model.bin", {{"a", view_of(a)},
                                  {"b", view_of(b)},
                                  {"transposed", view_of(transposed)},
                                  {"ids", view_of(counting({3}, mx::int64))},
                                  {"empty", view_of(counting({0, 2}, mx::float16))}});
  WeightStore store(model.dir.path(), model.callbacks());
  EXPECT_EQ(store.total_bytes(), 24u + 16 + 60 + 24);
  EXPECT_EQ(store.dtype("a"), StoredDtype::kBF16);
  const std::vector<std::string> names{"a", "b"};
  const std::vector<int64_t> rows{3, 2};
  EXPECT_TRUE(same_array(store.take_fused(names, rows, 4), mx::concatenate({a, b}, 0)));
  EXPECT_TRUE(same_array(store.take("transposed", {3, 5}, mx::float16),
                         mx::astype(transposed, mx::float16)));
  EXPECT_TRUE(same_array(store.take("ids", {3}), counting({3}, mx::int64)));
  EXPECT_EQ(store.take("empty", {0, 2}).size(), 0u);
  EXPECT_NO_THROW(store.expect_empty());
}

TEST(PickleWeights, ShardsAreReadOnceEach) {
  PickleDir model;
  const mx::array a = counting({2}, mx::float32), b = counting({3}, mx::float32, 7);
  model.add("one.bin", {{"a", view_of(a)}, {"c", view_of(a)}});
  model.add("two.bin", {{"b", view_of(b)}});
  model.dir.write("pytorch_model.bin.index.json",
                  R"({"weight_map":{"a":"one.bin","b":"two.bin","c":"one.bin"}})");
  WeightStore store(model.dir.path(), model.callbacks());
  EXPECT_THAT(model.read, ElementsAre("one.bin", "two.bin"));
  EXPECT_TRUE(same_array(store.take("a", {2}), a));
  EXPECT_TRUE(same_array(store.take("c", {2}), a));  // the same memory under two names
  EXPECT_TRUE(same_array(store.take("b", {3}), b));
}

TEST(PickleWeights, SafetensorsWinWhereBothExist) {
  PickleDir model;
  model.add("pytorch_model.bin", {{"a", view_of(counting({2}, mx::float32, 100))}});
  test::write_safetensors(model.dir.path() / "model.safetensors",
                          {{"a", counting({2}, mx::float32)}});
  WeightStore store(model.dir.path(), model.callbacks());
  EXPECT_TRUE(same_array(store.take("a", {2}), counting({2}, mx::float32)));
  EXPECT_TRUE(model.read.empty());
}

TEST(PickleWeights, MemoryIsLetGoOfWhenTaken) {
  PickleDir model;
  std::optional<TensorView> view = view_of(counting({4}, mx::float32));
  const std::weak_ptr<const void> watch = view->owner;
  model.add("pytorch_model.bin", {{"a", *view}, {"b", view_of(counting({4}, mx::float32))}});
  WeightStore store(model.dir.path(), model.callbacks());
  view.reset();
  model.files.clear();
  EXPECT_FALSE(watch.expired());
  EXPECT_TRUE(same_array(store.take("a", {4}), counting({4}, mx::float32)));
  EXPECT_TRUE(watch.expired());
  EXPECT_TRUE(store.contains("b"));
}

TEST(PickleWeights, ReportProgressUpToTheTotal) {
  PickleDir model;
  model.add("pytorch_model.bin", {{"a", view_of(counting({100}, mx::float32))},
                                  {"b", view_of(counting({50}, mx::float32))}});
  std::vector<uint64_t> done;
  LoadCallbacks callbacks = model.callbacks();
  callbacks.progress = [&](uint64_t bytes, uint64_t total) {
    EXPECT_EQ(total, 600u);
    done.push_back(bytes);
  };
  WeightStore store(model.dir.path(), std::move(callbacks));
  store.take("b", {50});
  store.take("a", {100});
  EXPECT_THAT(done, ElementsAre(200, 600));
}

TEST(PickleWeights, BadFilesAreNamed) {
  PickleDir model;
  model.add("pytorch_model.bin", {{"z", view_of(counting({2}, mx::complex64))}});
  EXPECT_THAT(model.error(), AllOf(HasSubstr("tensor z in"), HasSubstr("pytorch_model.bin"),
                                   HasSubstr("but is complex64")));
  EXPECT_THAT(error_of([&] { WeightStore store(model.dir.path()); }),
              AllOf(HasSubstr("pytorch_model.bin"), HasSubstr("convert it to safetensors")));
  const auto failing = [](const auto&) -> std::vector<NamedTensor> {
    throw std::invalid_argument("what the reader says");
  };
  EXPECT_EQ(error_of([&] { WeightStore store(model.dir.path(), {.read_pickle = failing}); }),
            "what the reader says");
}

TEST(PickleWeights, BadIndexesAreNamed) {
  PickleDir model;
  const auto index = [&](const std::string& text) {
    model.dir.write("pytorch_model.bin.index.json", text);
  };
  model.add("one.bin", {{"a", view_of(counting({2}, mx::float32))}});
  model.add("two.bin", {{"a", view_of(counting({2}, mx::float32))}});
  index(R"({"weight_map":{"a":"../one.bin"}})");
  EXPECT_THAT(model.error(), HasSubstr("not the name of a file beside it"));
  index(R"({"weight_map":{"a":"gone.bin"}})");
  EXPECT_THAT(model.error(), AllOf(HasSubstr("gone.bin"), HasSubstr("not there")));
  index(R"({"weight_map":{"b":"one.bin"}})");
  EXPECT_THAT(model.error(), AllOf(HasSubstr("tensor b in one.bin"), HasSubstr("lacks it")));
  EXPECT_EQ(model.read.size(), 1u);
  index(R"({"weight_map":{"a":"one.bin","b":"two.bin"}})");
  EXPECT_THAT(model.error(), HasSubstr("again in"));
  index(R"({"weight_map":[]})");
  EXPECT_THAT(model.error(), HasSubstr("pytorch_model.bin.index.json"));
}

}  // namespace
}  // namespace vllm_metal
