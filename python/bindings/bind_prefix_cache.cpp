// SPDX-License-Identifier: Apache-2.0
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "cache/prefix_index.h"
#include "runner/step.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace vllm_metal {

namespace {

using BlocksTuple = std::tuple<std::string, int32_t, std::vector<int32_t>>;
using BlocksTuples = std::vector<BlocksTuple>;
using Hashes = std::vector<nb::bytes>;

std::vector<std::string_view> views_of(const Hashes& hashes) {
  std::vector<std::string_view> views;
  views.reserve(hashes.size());
  for (const nb::bytes& hash : hashes) views.emplace_back(hash.c_str(), hash.size());
  return views;
}

std::vector<PrefixBlocks> to_blocks(BlocksTuples tuples) {
  std::vector<PrefixBlocks> result;
  result.reserve(tuples.size());
  for (auto& [id, first_block, blocks] : tuples)
    result.push_back({std::move(id), first_block, std::move(blocks)});
  return result;
}

void init_input(PrefixCacheInput* self, bool clear, BlocksTuples saves_of_ended, BlocksTuples loads,
                BlocksTuples saves_of_scheduled) {
  new (self) PrefixCacheInput{.clear = clear,
                              .saves_of_ended = to_blocks(std::move(saves_of_ended)),
                              .loads = to_blocks(std::move(loads)),
                              .saves_of_scheduled = to_blocks(std::move(saves_of_scheduled))};
}

}  // namespace

void bind_prefix_cache(nb::module_& module) {
  nb::class_<PrefixIndex>(
      module, "PrefixIndex",
      "Which blocks of tokens the prefix cache of one loaded model holds, and where. The hashes of "
      "a prompt's blocks are a chain: each depends on all before it.")
      .def(nb::init<int32_t>(), "num_blocks"_a)
      .def_prop_ro("num_blocks", &PrefixIndex::num_blocks)
      .def("__len__", &PrefixIndex::size, "Blocks held.")
      .def(
          "match",
          [](PrefixIndex& self, const Hashes& hashes) { return self.match(views_of(hashes)); },
          "hashes"_a, "Places of the longest beginning of the chain that is held.")
      .def(
          "save",
          [](PrefixIndex& self, const Hashes& hashes) {
            PrefixIndex::Saved saved = self.save(views_of(hashes));
            return std::pair(saved.first_block, std::move(saved.blocks));
          },
          "hashes"_a,
          "Take the chain in. Returns how many of its blocks were held, and places for those after "
          "them, as far as there is room.")
      .def("begin_step", &PrefixIndex::begin_step,
           "What is matched or saved between two calls keeps its place until the second.")
      .def("clear", &PrefixIndex::clear);
  nb::class_<PrefixCacheInput>(module, "PrefixCacheInput",
                               "What the prefix cache does in a step; see `ModelRunner.launch`.")
      .def("__init__", &init_input, nb::kw_only(), "clear"_a = false,
           "saves_of_ended"_a = BlocksTuples(), "loads"_a = BlocksTuples(),
           "saves_of_scheduled"_a = BlocksTuples(),
           "In this order: clear forgets all and frees the memory; saves_of_ended are of requests "
           "that are finished or preempted; loads of scheduled ones, whose computed tokens they "
           "are; saves_of_scheduled of what is computed once the step is. Each (request id, index "
           "of the first of its blocks, blocks of the prefix cache).");
}

}  // namespace vllm_metal
