// SPDX-License-Identifier: Apache-2.0
// Format: the `*.index.json` that Hugging Face's transformers writes beside sharded weights.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace vllm_metal {

// Which file holds each tensor, by the tensor's name, from the text of an index. A shard is a file
// of the index's own folder: the name of one is not empty, "." or "..", and holds neither '/' nor
// control characters. Throws std::invalid_argument for any other, and for what is no index.
std::map<std::string, std::string> parse_shard_index(std::string_view text);

}  // namespace vllm_metal
