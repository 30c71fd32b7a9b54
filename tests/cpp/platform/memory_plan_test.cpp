// SPDX-License-Identifier: Apache-2.0
#include "platform/memory_plan.h"

#include <gmock/gmock.h>

#include <stdexcept>
#include <vector>

#include "common/text.h"

namespace vllm_metal {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20, kGiB = uint64_t{1} << 30;

// A Mac of so many GB: two thirds are recommended up to 36 GB, three quarters from there on, and
// the system and other programs hold some.
MemoryFacts mac(uint64_t gigabytes, uint64_t model, uint64_t activations = 300 * kMiB) {
  const uint64_t total = gigabytes * kGiB;
  return {.total = total,
          .available = total - 2 * kGiB - total / 8,
          .working_set = gigabytes <= 36 ? total / 3 * 2 : total / 4 * 3,
          .model = model,
          .activations = activations};
}

// SmolLM2-135M in float16: keys and values of 30 layers, 3 heads of 64.
constexpr CacheShape kSmol{.block_bytes = uint64_t{2} * 30 * 3 * 64 * 2 * 16,
                           .block_size = 16,
                           .max_model_len = 8192,
                           .shortens = false};
// Llama 3.1 8B.
constexpr CacheShape kLlama8{.block_bytes = uint64_t{2} * 32 * 8 * 128 * 2 * 16,
                             .block_size = 16,
                             .max_model_len = 32768,
                             .shortens = false};

std::string message_of_plan(const MemoryFacts& facts, const CacheShape& cache,
                            const MemoryWishes& wishes) {
  try {
    plan_memory(facts, cache, wishes);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

TEST(MemoryPlan, AutoIsOneSequenceAndATenth) {
  const MemoryPlan plan = plan_memory(mac(16, 107 * kMiB), kSmol, {});
  EXPECT_EQ(plan.basis, "auto");
  EXPECT_EQ(plan.kv_cache, 564 * kSmol.block_bytes);  // 1.1 * 512 blocks, rounded up
  // The model and the cache take 305 MiB, a fifth of which is less than the activations.
  EXPECT_EQ(plan.memory_limit, 107 * kMiB + plan.kv_cache + 300 * kMiB + plan.margin);
  EXPECT_EQ(plan.margin, 128 * kMiB);
}

TEST(MemoryPlan, AutoOfALargeModelAddsAFifth) {
  const MemoryPlan plan = plan_memory(mac(32, 5 * kGiB), kLlama8, {});
  EXPECT_EQ(plan.kv_cache, 2253 * kLlama8.block_bytes);
  const double expected = 1.2 * static_cast<double>(5 * kGiB + plan.kv_cache);
  EXPECT_NEAR(static_cast<double>(plan.memory_limit), expected, 16.0);
}

TEST(MemoryPlan, AutoHasABlockMoreThanASequence) {
  CacheShape cache = kSmol;
  cache.max_model_len = 17;
  EXPECT_EQ(plan_memory(mac(16, kGiB), cache, {}).kv_cache, 3 * cache.block_bytes);
}

TEST(MemoryPlan, AutoNamesAllFiguresWhereTheyDoNotFit) {
  const std::string message = message_of_plan(mac(8, 4 * kGiB), kLlama8, {});
  for (const char* part :
       {"auto requires more memory than there is", "model 4.00 GiB", "KV cache 4.40 GiB",
        "2253 blocks of 16 tokens", "max_model_len 32768", "activations 300.0 MiB", "margin ",
        "total ", "5.00 GiB are available", "of 8.00 GiB", "--max-model-len",
        "--max-num-batched-tokens", "smaller or quantised model"})
    EXPECT_THAT(message, testing::HasSubstr(part));
}

TEST(MemoryPlan, ThePrefixCacheIsAShareOfWhatTheDeviceRecommends) {
  const MemoryFacts facts = mac(16, 107 * kMiB);
  const MemoryPlan without = plan_memory(facts, kSmol, {});
  const MemoryPlan plan = plan_memory(facts, kSmol, {.prefix_cache = 0.05});
  EXPECT_EQ(without.prefix_cache, 0u);
  EXPECT_EQ(plan.prefix_cache, facts.working_set / 20 / kSmol.block_bytes * kSmol.block_bytes);
  // `auto` has little else: it comes on top, and so with a size in bytes or blocks.
  EXPECT_EQ(plan.kv_cache, without.kv_cache);
  EXPECT_EQ(plan.memory_limit, without.memory_limit + plan.prefix_cache);
  EXPECT_THAT(plan.table(),
              testing::HasSubstr(text("prefix cache           546.0 MiB   ",
                                      plan.prefix_cache / kSmol.block_bytes, " blocks, ")));
  EXPECT_THAT(without.table(), testing::Not(testing::HasSubstr("prefix")));
  const MemoryWishes bytes{.kv_cache_bytes = kGiB, .prefix_cache = 0.05};
  EXPECT_EQ(plan_memory(facts, kSmol, bytes).kv_cache,
            kGiB / kSmol.block_bytes * kSmol.block_bytes);
}

TEST(MemoryPlan, ThePrefixCacheComesOutOfAShare) {
  const MemoryFacts facts = mac(16, 107 * kMiB);
  for (MemoryWishes wishes : {MemoryWishes{.fraction = 0.5}, MemoryWishes{.utilization = 0.5}}) {
    const MemoryPlan without = plan_memory(facts, kSmol, wishes);
    wishes.prefix_cache = 0.25;
    const MemoryPlan plan = plan_memory(facts, kSmol, wishes);
    EXPECT_LE(plan.memory_limit, 8 * kGiB);
    EXPECT_NEAR(static_cast<double>(plan.kv_cache + plan.prefix_cache),
                static_cast<double>(without.kv_cache), static_cast<double>(kSmol.block_bytes));
  }
}

TEST(MemoryPlan, AShorterSequenceLeavesRoomForThePrefixCache) {
  CacheShape cache = kLlama8;
  cache.shortens = true;
  const MemoryPlan plan = plan_memory(mac(16, 5 * kGiB), cache, {.prefix_cache = 0.2});
  EXPECT_GT(plan.kv_cache, 100 * cache.block_bytes);
  EXPECT_LE(plan.memory_limit, mac(16, 0).working_set);
}

TEST(MemoryPlan, APrefixCacheThatDoesNotFitIsNamed) {
  const MemoryFacts facts = mac(16, 107 * kMiB);
  const std::string large = message_of_plan(facts, kSmol, {.prefix_cache = 1.0});
  for (const char* part : {"requires more memory than there is", "prefix cache 10.67 GiB",
                           "reduce VLLM_METAL_PREFIX_CACHE_FRACTION"})
    EXPECT_THAT(large, testing::HasSubstr(part));
  const std::string share = message_of_plan(facts, kSmol, {.fraction = 0.5, .prefix_cache = 0.9});
  EXPECT_THAT(share, testing::HasSubstr("leaves nothing for the KV cache"));
  EXPECT_THAT(share, testing::HasSubstr("prefix cache 9.60 GiB"));
  EXPECT_THAT(
      message_of_plan(facts, kLlama8, {.prefix_cache = 1e-4}),
      testing::HasSubstr("VLLM_METAL_PREFIX_CACHE_FRACTION=0.0001 of 10.67 GiB must hold at "
                         "least one block of 2.0 MiB"));
  EXPECT_THAT(message_of_plan(facts, kSmol, {.prefix_cache = 1.5}),
              testing::HasSubstr("VLLM_METAL_PREFIX_CACHE_FRACTION must lie in (0, 1] but is 1.5"));
}

TEST(MemoryPlan, AShorterSequenceWillDoWhenAllowed) {
  CacheShape cache = kLlama8;
  cache.shortens = true;
  const MemoryFacts facts = mac(8, 2 * kGiB);
  const MemoryPlan plan = plan_memory(facts, cache, {});
  EXPECT_LT(plan.kv_cache, 2253 * cache.block_bytes);
  EXPECT_GT(plan.kv_cache, 1000 * cache.block_bytes);
  EXPECT_LE(plan.memory_limit, std::min(facts.available, facts.working_set));
  EXPECT_THAT(message_of_plan(mac(8, 6 * kGiB), cache, {}),
              testing::HasSubstr("requires more memory than there is"));
}

TEST(MemoryPlan, AutoOfPagesIsNineTenthsOfWhatThereIs) {
  const MemoryFacts facts = mac(16, 2 * kGiB);
  const MemoryPlan plan = plan_memory(facts, kLlama8, {.paged = true});
  const auto usable = static_cast<double>(std::min(facts.available, facts.working_set));
  EXPECT_LE(plan.memory_limit, static_cast<uint64_t>(0.9 * usable));
  EXPECT_GT(plan.memory_limit, static_cast<uint64_t>(0.9 * usable) - kLlama8.block_bytes);
}

TEST(MemoryPlan, AFractionIsOneOfTheTotal) {
  for (bool paged : {false, true}) {
    const MemoryPlan plan =
        plan_memory(mac(16, 2 * kGiB), kLlama8, {.fraction = 0.5, .paged = paged});
    EXPECT_EQ(plan.basis, "VLLM_METAL_MEMORY_FRACTION=0.5");
    EXPECT_LE(plan.memory_limit, 8 * kGiB);
    EXPECT_GT(plan.memory_limit, 8 * kGiB - kLlama8.block_bytes);
    EXPECT_EQ(plan.memory_limit, 2 * kGiB + 300 * kMiB + plan.kv_cache + plan.margin);
  }
}

TEST(MemoryPlan, AFractionThatIsNotThereSaysWhichIs) {
  EXPECT_EQ(
      message_of_plan(mac(16, kGiB), kSmol, {.fraction = 0.9}),
      "[memory] VLLM_METAL_MEMORY_FRACTION=0.9 asks for 14.40 GiB of 16.00 GiB but the device "
      "recommends to use no more than 10.67 GiB. Set it to 0.66 or less or to auto, or close "
      "other programs.");
  MemoryFacts busy = mac(16, kGiB);
  busy.available = 4 * kGiB;
  EXPECT_THAT(message_of_plan(busy, kSmol, {.fraction = 0.5}),
              testing::AllOf(testing::HasSubstr("only 4.00 GiB are available"),
                             testing::HasSubstr("Set it to 0.25 or less")));
}

TEST(MemoryPlan, AFractionThatTheModelTakesNamesTheParts) {
  const std::string message = message_of_plan(mac(16, 3 * kGiB), kSmol, {.fraction = 0.2});
  for (const char* part :
       {"VLLM_METAL_MEMORY_FRACTION=0.2 leaves nothing for the KV cache",
        "Of 3.20 GiB of 16.00 GiB", "the model takes 3.00 GiB", "activations 300.0 MiB",
        "the margin 128.0 MiB", "Raise VLLM_METAL_MEMORY_FRACTION=0.2"})
    EXPECT_THAT(message, testing::HasSubstr(part));
}

TEST(MemoryPlan, PagedRefusalsHaveTheWordsThatUsersKnow) {
  EXPECT_THAT(message_of_plan(mac(16, kGiB), kSmol, {.fraction = 0.9, .paged = true}),
              testing::StartsWith("[memory] Paged attention: requested memory exceeds what is "
                                  "available. VLLM_METAL_MEMORY_FRACTION=0.9 asks for 14.40 GiB"));
  EXPECT_THAT(message_of_plan(mac(16, 14 * kGiB), kSmol, {.paged = true}),
              testing::AllOf(testing::StartsWith("[memory] Paged attention: not enough memory for "
                                                 "the KV cache. auto leaves nothing"),
                             testing::HasSubstr("the model takes 14.00 GiB"),
                             testing::HasSubstr("Reduce --max-num-batched-tokens")));
  EXPECT_THAT(message_of_plan(mac(16, kGiB), kSmol, {.kv_cache_bytes = 64 * kGiB, .paged = true}),
              testing::StartsWith("[memory] Paged attention: requested memory exceeds what is "
                                  "available. --kv-cache-memory-bytes 68719476736 requires"));
  // Room for some blocks of 2 MiB, not for sixteen.
  const auto nine_tenths = static_cast<uint64_t>(0.9 * static_cast<double>(mac(16, 0).working_set));
  const uint64_t margin = nine_tenths / 50;
  MemoryFacts facts = mac(16, 0);
  facts.model = nine_tenths - margin - facts.activations - 10 * kLlama8.block_bytes;
  EXPECT_THAT(message_of_plan(facts, kLlama8, {.paged = true}),
              testing::StartsWith("[memory] Paged attention: computed num_blocks too low ("));
  facts.model -= 8 * kLlama8.block_bytes;
  EXPECT_EQ(message_of_plan(facts, kLlama8, {.paged = true}), "");
}

TEST(MemoryPlan, TheUtilizationTakesWhatIsThere) {
  const MemoryFacts facts = mac(16, kGiB);
  const MemoryPlan plan = plan_memory(facts, kSmol, {.utilization = 0.95});
  EXPECT_EQ(plan.basis, "--gpu-memory-utilization 0.95");
  EXPECT_LE(plan.memory_limit, facts.working_set);
  EXPECT_GT(plan.memory_limit, facts.working_set - kSmol.block_bytes);
}

TEST(MemoryPlan, TheMoreExactWishDecides) {
  const MemoryFacts facts = mac(64, kGiB);
  MemoryWishes wishes{.num_blocks = 100,
                      .kv_cache_bytes = kGiB,
                      .fraction = 0.25,
                      .utilization = 0.5,
                      .paged = false};
  const auto basis = [&] { return plan_memory(facts, kSmol, wishes).basis; };
  EXPECT_EQ(basis(), "--num-gpu-blocks-override 100");
  EXPECT_EQ(plan_memory(facts, kSmol, wishes).kv_cache, 100 * kSmol.block_bytes);
  wishes.num_blocks.reset();
  EXPECT_EQ(basis(), "--kv-cache-memory-bytes 1073741824");
  EXPECT_EQ(plan_memory(facts, kSmol, wishes).kv_cache,
            kGiB / kSmol.block_bytes * kSmol.block_bytes);
  wishes.kv_cache_bytes.reset();
  EXPECT_EQ(basis(), "VLLM_METAL_MEMORY_FRACTION=0.25");
  wishes.fraction.reset();
  EXPECT_EQ(basis(), "--gpu-memory-utilization 0.5");
  wishes.utilization.reset();
  EXPECT_EQ(basis(), "auto");
}

TEST(MemoryPlan, ImpossibleWishesAreNamed) {
  const MemoryFacts facts = mac(16, kGiB);
  EXPECT_EQ(message_of_plan(facts, kSmol, {.num_blocks = 1}),
            "[memory] --num-gpu-blocks-override must be at least 2 but is 1.");
  EXPECT_EQ(message_of_plan(facts, kSmol, {.kv_cache_bytes = 0}),
            "[memory] --kv-cache-memory-bytes must be positive but is 0.");
  EXPECT_EQ(message_of_plan(facts, kSmol, {.fraction = 1.5}),
            "[memory] VLLM_METAL_MEMORY_FRACTION must lie in (0, 1] but is 1.5.");
  EXPECT_EQ(message_of_plan(facts, kSmol, {.utilization = 0.0}),
            "[memory] --gpu-memory-utilization must lie in (0, 1] but is 0.");
  for (uint64_t huge : {uint64_t{1} << 62, ~uint64_t{0}}) {
    EXPECT_THAT(message_of_plan(facts, kSmol, {.num_blocks = huge}),
                testing::HasSubstr("requires more memory than there is"));
    EXPECT_THAT(message_of_plan(facts, kSmol, {.kv_cache_bytes = huge}),
                testing::HasSubstr("requires more memory than there is"));
  }
  EXPECT_EQ(message_of_plan(facts, kSmol, {.kv_cache_bytes = 100}),
            "[memory] --kv-cache-memory-bytes 100 must hold at least 2 blocks of 0.4 MiB.");
}

// Every machine from 8 to 512 GB, models of 0.1 to 400 GB, every way to ask: the plan fits or the
// figures are named, nothing in between.
TEST(MemoryPlan, FitsOrIsRefusedOnEveryMac) {
  const std::vector<MemoryWishes> all_wishes{{},
                                             {.paged = true},
                                             {.fraction = 0.1},
                                             {.fraction = 0.5},
                                             {.fraction = 0.66, .paged = true},
                                             {.utilization = 0.92},
                                             {.kv_cache_bytes = 4 * kGiB}};
  int fitting = 0, refused = 0;
  for (uint64_t gigabytes : {8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512}) {
    for (double model : {0.1, 0.5, 1.0, 2.5, 4.5, 8.0, 16.0, 40.0, 70.0, 140.0, 245.0, 400.0}) {
      for (const CacheShape& cache : {kSmol, kLlama8}) {
        for (bool shortens : {false, true}) {
          for (const MemoryWishes& wishes : all_wishes) {
            CacheShape shape = cache;
            shape.shortens = shortens;
            const MemoryFacts facts =
                mac(gigabytes, static_cast<uint64_t>(model * static_cast<double>(kGiB)));
            SCOPED_TRACE(text(gigabytes, " GB, model ", model));
            const std::string message = message_of_plan(facts, shape, wishes);
            if (!message.empty()) {
              ++refused;
              EXPECT_THAT(message, testing::HasSubstr("GiB"));
              continue;
            }
            ++fitting;
            const MemoryPlan plan = plan_memory(facts, shape, wishes);
            const uint64_t usable = std::min(facts.available, facts.working_set);
            EXPECT_LE(plan.memory_limit, usable);
            EXPECT_LT(plan.wired_limit, facts.working_set);
            EXPECT_LE(plan.wired_limit, plan.memory_limit);
            EXPECT_LT(plan.cache_limit, plan.memory_limit);
            EXPECT_EQ(plan.kv_cache % shape.block_bytes, 0u);
            EXPECT_GE(plan.kv_cache, 2 * shape.block_bytes);
            EXPECT_GE(plan.memory_limit, facts.model + facts.activations + plan.kv_cache);
          }
        }
      }
    }
  }
  EXPECT_GT(fitting, 500);
  EXPECT_GT(refused, 500);
}

TEST(MemoryPlan, MoreMemoryIsNeverALessCache) {
  for (const MemoryWishes& wishes : {MemoryWishes{.paged = true}, MemoryWishes{.fraction = 0.5}}) {
    uint64_t before = 0;
    for (uint64_t gigabytes : {8, 16, 24, 32, 64, 128, 512}) {
      const uint64_t now = plan_memory(mac(gigabytes, kGiB), kLlama8, wishes).kv_cache;
      EXPECT_GT(now, before) << gigabytes;
      before = now;
    }
  }
}

TEST(MemoryPlan, TableNamesEveryPart) {
  EXPECT_EQ(plan_memory(mac(16, 107 * kMiB), kSmol, {}).table(),
            "Memory plan (auto)\n"
            "  device                 16.00 GiB   12.00 GiB available before the model\n"
            "  recommended            10.67 GiB   by the device\n"
            "  model                  107.0 MiB   measured\n"
            "  KV cache               198.3 MiB   564 blocks, 9024 tokens\n"
            "  activations            300.0 MiB   of the largest step\n"
            "  margin                 128.0 MiB\n"
            "  total                  733.3 MiB   MLX's limit");
}

}  // namespace
}  // namespace vllm_metal
