// SPDX-License-Identifier: Apache-2.0
// Which caches are left to GPU kernels when a device's compiler refuses some of them.
#include "kernels/gpu/kernel_guard.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "common/log.h"
#include "common/text.h"

namespace vllm_metal::gpu {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class KernelGuardTest : public testing::Test {
 protected:
  KernelGuardTest() {
    set_log_sink([this](LogLevel level, const std::string& message) {
      EXPECT_EQ(level, LogLevel::kWarning);
      warnings_.push_back(message);
    });
  }
  ~KernelGuardTest() override { set_log_sink(nullptr); }

  void compile(const KernelUse& kernel) {
    const std::string expression = kernel.name.expression();
    compiled_.push_back(expression);
    if (refused_.contains(expression)) throw std::runtime_error("no such type 'bfloat'");
  }

  std::set<std::string> refused_;
  std::vector<std::string> compiled_, warnings_;
  KernelGuard guard_{[this](const KernelUse& kernel) { compile(kernel); }};
};

TEST_F(KernelGuardTest, EachKernelIsCompiledOnce) {
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(guard_.allows(mx::float16, 192));
  EXPECT_THAT(compiled_,
              ElementsAre("kv_write<half>", "rotary_kv_write<half>", "copy_blocks<uint4>",
                          "copy_blocks<ushort>", "attention_prefill<half, 192, true>",
                          "attention_merge<half, 192>", "attention_decode<half, 192, 1>",
                          "attention_decode<half, 192, 2>", "attention_decode<half, 192, 4>"));
  compiled_.clear();
  EXPECT_TRUE(guard_.allows(mx::float16, 64));  // shares those without a head size
  EXPECT_THAT(compiled_,
              ElementsAre("attention_prefill<half, 64, true>", "attention_merge<half, 64>",
                          "attention_decode<half, 64, 1>", "attention_decode<half, 64, 2>",
                          "attention_decode<half, 64, 4>", "attention_decode<half, 64, 8>"));
  EXPECT_TRUE(warnings_.empty());
}

TEST_F(KernelGuardTest, OneRefusedKernelTurnsItsCachesToTheFallbackWithOneWarning) {
  refused_ = {"attention_prefill<half, 256, true>", "attention_decode<half, 256, 1>"};
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(guard_.allows(mx::float16, 256));
  ASSERT_EQ(warnings_.size(), 1u);
  EXPECT_THAT(warnings_[0], HasSubstr("attention_prefill<half, 256, true>"));
  EXPECT_THAT(warnings_[0], HasSubstr("no such type 'bfloat'"));
  EXPECT_EQ(std::ranges::count(compiled_, "attention_prefill<half, 256, true>"), 1);
  // Other caches keep theirs.
  EXPECT_TRUE(guard_.allows(mx::float16, 128));
  EXPECT_TRUE(guard_.allows(mx::float32, 256));
  EXPECT_EQ(warnings_.size(), 1u);
}

TEST_F(KernelGuardTest, ARefusedKernelOfAllHeadSizesIsWarnedOfOnce) {
  refused_ = {"kv_write<bfloat>"};
  for (int head_dim : {64, 128, 64}) EXPECT_FALSE(guard_.allows(mx::bfloat16, head_dim));
  EXPECT_EQ(warnings_.size(), 1u);
  EXPECT_THAT(compiled_, ElementsAre("kv_write<bfloat>"));
}

TEST_F(KernelGuardTest, HeadSizesWithoutKernelsCompileNone) {
  EXPECT_FALSE(guard_.allows(mx::float32, 72));
  EXPECT_TRUE(compiled_.empty());
  EXPECT_TRUE(warnings_.empty());
}

TEST_F(KernelGuardTest, AKernelOfNoCacheIsAskedForByItself) {
  refused_ = {"add_rms_norm<bfloat>"};
  const auto norm_of = [](const char* type) { return KernelUse{{"add_rms_norm", type}, 512}; };
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(guard_.allows(norm_of("half")));
    EXPECT_FALSE(guard_.allows(norm_of("bfloat")));
  }
  EXPECT_EQ(warnings_.size(), 1u);
  EXPECT_THAT(compiled_, ElementsAre("add_rms_norm<half>", "add_rms_norm<bfloat>"));
  EXPECT_TRUE(guard_.allows(mx::bfloat16, 64));
}

TEST_F(KernelGuardTest, ThreadsShareTheAnswer) {
  refused_ = {"attention_merge<float, 96>"};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&] { EXPECT_FALSE(guard_.allows(mx::float32, 96)); });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(warnings_.size(), 1u);
  EXPECT_EQ(std::ranges::count(compiled_, "kv_write<float>"), 1);
}

}  // namespace
}  // namespace vllm_metal::gpu
