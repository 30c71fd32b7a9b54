// SPDX-License-Identifier: Apache-2.0
#include "platform/memory_plan.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <utility>

#include "common/text.h"

namespace vllm_metal {

namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

constexpr const char* kAuto = "auto";
// `auto` of the MLX-managed cache.
constexpr double kSequences = 1.1;
constexpr double kOverheadFactor = 1.2;
// `auto` of the paged cache.
constexpr double kPagedShare = 0.9;

// Beside what is measured: MLX's rounding and reuse, and graphs in the making.
constexpr uint64_t kMinMargin = 128 * kMiB;
constexpr double kMarginShare = 0.02;

constexpr double kWiredShare = 0.95;

// vLLM keeps a block to itself.
constexpr int64_t kLeastBlocks = 2;
// Of a paged cache whose size nobody named: with fewer there is nothing to share or to schedule.
constexpr int64_t kLeastPagedBlocks = 16;

std::string bytes_text(uint64_t bytes) {
  std::array<char, 32> buffer{};
  const auto value = static_cast<double>(bytes);
  if (bytes >= 1024 * kMiB) {
    std::snprintf(buffer.data(), buffer.size(), "%.2f GiB",
                  value / static_cast<double>(1024 * kMiB));
  } else {
    std::snprintf(buffer.data(), buffer.size(), "%.1f MiB", value / static_cast<double>(kMiB));
  }
  return buffer.data();
}

std::string number_text(double value) {
  std::array<char, 32> buffer{};
  std::snprintf(buffer.data(), buffer.size(), "%g", value);
  return buffer.data();
}

uint64_t share_of(uint64_t bytes, double share) {
  return static_cast<uint64_t>(static_cast<double>(bytes) * share);
}

uint64_t less(uint64_t from, uint64_t taken) { return from > taken ? from - taken : 0; }

// The largest number where the sum or product is larger, which then is refused for its size.
constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();
uint64_t sum(uint64_t a, uint64_t b) { return a > kMost - b ? kMost : a + b; }
uint64_t times(uint64_t a, uint64_t b) { return b != 0 && a > kMost / b ? kMost : a * b; }

class Planner {
 public:
  Planner(const MemoryFacts& facts, const CacheShape& cache, const MemoryWishes& wishes)
      : facts_(facts), cache_(cache), wishes_(wishes) {
    check();
    if (wishes_.prefix_cache) prefix_cache_ = prefix_cache_of(*wishes_.prefix_cache);
  }

  MemoryPlan plan() const {
    if (wishes_.num_blocks)
      return exactly(times(*wishes_.num_blocks, cache_.block_bytes),
                     text("--num-gpu-blocks-override ", *wishes_.num_blocks));
    if (wishes_.kv_cache_bytes)
      return exactly(*wishes_.kv_cache_bytes,
                     text("--kv-cache-memory-bytes ", *wishes_.kv_cache_bytes));
    if (wishes_.fraction) return of_fraction(*wishes_.fraction);
    if (wishes_.utilization) return of_utilization(*wishes_.utilization);
    return wishes_.paged ? automatic_paged() : automatic();
  }

 private:
  void check() const {
    if (cache_.block_bytes == 0 || cache_.block_size < 1 || cache_.max_model_len < 1)
      throw std::invalid_argument("[memory] a block and a sequence must have a size.");
    if (wishes_.num_blocks && *wishes_.num_blocks < kLeastBlocks)
      throw std::invalid_argument(text("[memory] --num-gpu-blocks-override must be at least ",
                                       kLeastBlocks, " but is ", *wishes_.num_blocks, "."));
    if (wishes_.kv_cache_bytes && *wishes_.kv_cache_bytes == 0)
      throw std::invalid_argument("[memory] --kv-cache-memory-bytes must be positive but is 0.");
    check_share("VLLM_METAL_MEMORY_FRACTION", wishes_.fraction);
    check_share("--gpu-memory-utilization", wishes_.utilization);
  }

  static void check_share(const char* name, const std::optional<double>& share) {
    if (share && !(*share > 0 && *share <= 1))
      throw std::invalid_argument(
          text("[memory] ", name, " must lie in (0, 1] but is ", number_text(*share), "."));
  }

  uint64_t prefix_cache_of(double fraction) const {
    check_share("VLLM_METAL_PREFIX_CACHE_FRACTION", wishes_.prefix_cache);
    // Rows are numbered by 32 bits.
    const uint64_t most = std::numeric_limits<int32_t>::max() /
                          static_cast<uint64_t>(cache_.block_size) * cache_.block_bytes;
    const uint64_t bytes = whole_blocks(std::min(share_of(facts_.working_set, fraction), most));
    if (bytes == 0)
      throw std::invalid_argument(
          text("[memory] VLLM_METAL_PREFIX_CACHE_FRACTION=", number_text(fraction), " of ",
               bytes_text(facts_.working_set), " must hold at least one block of ",
               bytes_text(cache_.block_bytes), "."));
    return bytes;
  }

  // What this process can have without driving others out.
  uint64_t usable() const { return std::min(facts_.available, facts_.working_set); }

  static uint64_t margin_of(uint64_t bytes) {
    return std::max(kMinMargin, share_of(bytes, kMarginShare));
  }

  int64_t sequence_blocks() const {
    return (cache_.max_model_len + cache_.block_size - 1) / cache_.block_size;
  }

  uint64_t whole_blocks(uint64_t bytes) const {
    return bytes / cache_.block_bytes * cache_.block_bytes;
  }

  MemoryPlan make(std::string basis, uint64_t kv_cache, uint64_t margin) const {
    MemoryPlan plan{.basis = std::move(basis), .facts = facts_, .cache = cache_};
    plan.kv_cache = whole_blocks(kv_cache);
    plan.prefix_cache = prefix_cache_;
    plan.margin = margin;
    plan.memory_limit =
        sum(facts_.model + facts_.activations + margin + prefix_cache_, plan.kv_cache);
    plan.cache_limit = facts_.activations + margin;
    plan.wired_limit = std::min(plan.memory_limit, share_of(facts_.working_set, kWiredShare));
    return plan;
  }

  // A cache of that size, whatever it is a share of.
  MemoryPlan exactly(uint64_t kv_cache, std::string basis) const {
    if (kv_cache < kLeastBlocks * cache_.block_bytes)
      throw std::invalid_argument(text("[memory] ", basis, " must hold at least ", kLeastBlocks,
                                       " blocks of ", bytes_text(cache_.block_bytes), "."));
    const MemoryPlan plan =
        make(std::move(basis), kv_cache, margin_of(sum(facts_.model, kv_cache)));
    if (plan.memory_limit > usable()) refuse(plan);
    return plan;
  }

  MemoryPlan automatic() const {
    const auto wanted =
        static_cast<int64_t>(std::ceil(kSequences * static_cast<double>(sequence_blocks())));
    const auto blocks = static_cast<uint64_t>(std::max(wanted, sequence_blocks() + 1));
    uint64_t kv_cache = times(blocks, cache_.block_bytes);
    if (cache_.shortens) kv_cache = std::min(kv_cache, most_with_overhead());
    // Where the overhead leaves less than the activations take, they count.
    const uint64_t overhead = share_of(sum(facts_.model, kv_cache), kOverheadFactor - 1);
    const uint64_t margin = std::max(less(overhead, facts_.activations), kMinMargin);
    const MemoryPlan plan = make(kAuto, kv_cache, margin);
    if (plan.memory_limit > usable() || plan.kv_cache < kLeastBlocks * cache_.block_bytes)
      refuse(plan);
    return plan;
  }

  // The largest cache whose plan fits.
  uint64_t most_with_overhead() const {
    const uint64_t most = less(usable(), prefix_cache_);
    const uint64_t by_factor = less(share_of(most, 1 / kOverheadFactor), facts_.model);
    const uint64_t by_parts = less(most, facts_.model + facts_.activations + kMinMargin);
    return std::min(by_factor, by_parts);
  }

  MemoryPlan of_share(const std::string& basis, uint64_t bytes) const {
    const uint64_t margin = margin_of(bytes);
    const MemoryPlan plan = make(
        basis, less(bytes, facts_.model + facts_.activations + margin + prefix_cache_), margin);
    const uint64_t num_blocks = plan.kv_cache / cache_.block_bytes;
    if (num_blocks == 0 || (!wishes_.paged && num_blocks < kLeastBlocks)) refuse_share(plan, bytes);
    if (wishes_.paged && num_blocks < kLeastPagedBlocks)
      throw std::runtime_error(text("[memory] Paged attention: computed num_blocks too low (",
                                    num_blocks, " < minimum ", kLeastPagedBlocks, "). ",
                                    parts_of_share(plan, bytes)));
    return plan;
  }

  MemoryPlan automatic_paged() const { return of_share(kAuto, share_of(usable(), kPagedShare)); }

  MemoryPlan of_fraction(double fraction) const {
    const std::string basis = text("VLLM_METAL_MEMORY_FRACTION=", number_text(fraction));
    const uint64_t bytes = share_of(facts_.total, fraction);
    if (bytes > usable()) {
      const double most =
          std::floor(100 * static_cast<double>(usable()) / static_cast<double>(facts_.total)) / 100;
      throw std::runtime_error(text(
          "[memory] ", paged_text("requested memory exceeds what is available. "), basis,
          " asks for ", bytes_text(bytes), " of ", bytes_text(facts_.total), " but ", usable_text(),
          ". Set it to ", number_text(most), " or less or to auto, or close other programs."));
    }
    return of_share(basis, bytes);
  }

  MemoryPlan of_utilization(double utilization) const {
    return of_share(text("--gpu-memory-utilization ", number_text(utilization)),
                    std::min(share_of(facts_.total, utilization), usable()));
  }

  std::string usable_text() const {
    if (facts_.working_set < facts_.available)
      return text("the device recommends to use no more than ", bytes_text(facts_.working_set));
    return text("only ", bytes_text(facts_.available), " are available");
  }

  std::string figures(const MemoryPlan& plan) const {
    return text("model ", bytes_text(facts_.model), ", KV cache ", bytes_text(plan.kv_cache), " (",
                plan.kv_cache / cache_.block_bytes, " blocks of ", cache_.block_size,
                " tokens; max_model_len ", cache_.max_model_len, "), ", prefix_cache_text(),
                "activations ", bytes_text(facts_.activations), ", margin ",
                bytes_text(plan.margin), ", total ", bytes_text(plan.memory_limit));
  }

  [[noreturn]] void refuse(const MemoryPlan& plan) const {
    throw std::runtime_error(text(
        "[memory] ", paged_text("requested memory exceeds what is available. "), plan.basis,
        " requires more memory than there is: ", figures(plan), "; ", usable_text(), " of ",
        bytes_text(facts_.total),
        ". Reduce --max-model-len (-1 takes the longest that fits) or --max-num-batched-tokens, ",
        prefix_cache_advice(), "use a smaller or quantised model, or close other programs."));
  }

  [[noreturn]] void refuse_share(const MemoryPlan& plan, uint64_t bytes) const {
    throw std::runtime_error(
        text("[memory] ", paged_text("not enough memory for the KV cache. "), plan.basis,
             " leaves nothing for the KV cache: ", parts_of_share(plan, bytes)));
  }

  std::string parts_of_share(const MemoryPlan& plan, uint64_t bytes) const {
    return text("Of ", bytes_text(bytes), " of ", bytes_text(facts_.total), " the model takes ",
                bytes_text(facts_.model), ", ", prefix_cache_text(), "activations ",
                bytes_text(facts_.activations), " and the margin ", bytes_text(plan.margin),
                "; a block has ", bytes_text(cache_.block_bytes), "; ", usable_text(), ". ",
                plan.basis == kAuto ? "Reduce" : text("Raise ", plan.basis, ", reduce"),
                " --max-num-batched-tokens, ", prefix_cache_advice(),
                "use a smaller or quantised model, or close other ", "programs.");
  }

  std::string prefix_cache_text() const {
    return prefix_cache_ == 0 ? "" : text("prefix cache ", bytes_text(prefix_cache_), ", ");
  }

  std::string prefix_cache_advice() const {
    return prefix_cache_ == 0 ? "" : "reduce VLLM_METAL_PREFIX_CACHE_FRACTION, ";
  }

  // What users of paged attention search for.
  std::string paged_text(const char* what) const {
    return wishes_.paged ? text("Paged attention: ", what) : "";
  }

  MemoryFacts facts_;
  CacheShape cache_;
  MemoryWishes wishes_;
  uint64_t prefix_cache_ = 0;
};

}  // namespace

MemoryPlan plan_memory(const MemoryFacts& facts, const CacheShape& cache,
                       const MemoryWishes& wishes) {
  return Planner(facts, cache, wishes).plan();
}

std::string MemoryPlan::table() const {
  std::string result = text("Memory plan (", basis, ")");
  const auto line = [&](const char* name, uint64_t bytes, const std::string& note) {
    std::array<char, 80> buffer{};
    std::snprintf(buffer.data(), buffer.size(), "\n  %-20s%12s", name, bytes_text(bytes).c_str());
    result += buffer.data();
    if (!note.empty()) result += "   " + note;
  };
  const auto blocks_text = [&](uint64_t bytes) {
    const uint64_t blocks = bytes / cache.block_bytes;
    return text(blocks, " blocks, ", blocks * static_cast<uint64_t>(cache.block_size), " tokens");
  };
  line("device", facts.total, text(bytes_text(facts.available), " available before the model"));
  if (facts.working_set != facts.total) line("recommended", facts.working_set, "by the device");
  line("model", facts.model, "measured");
  line("KV cache", kv_cache, blocks_text(kv_cache));
  if (prefix_cache > 0) line("prefix cache", prefix_cache, blocks_text(prefix_cache));
  line("activations", facts.activations, "of the largest step");
  line("margin", margin, "");
  line("total", memory_limit, "MLX's limit");
  return result;
}

}  // namespace vllm_metal
