// SPDX-License-Identifier: Apache-2.0
#include "files/shard_index.h"

#include <algorithm>
#include <stdexcept>

#include "common/text.h"
#include "files/json.h"
#include "files/utf8.h"

namespace vllm_metal {

namespace {

// A NUL would end the path that the system sees; other control characters would garble messages.
bool is_separator_or_control(char c) {
  return c == '/' || static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
}

void check_shard_name(const std::string& name) {
  if (name.empty() || name == "." || name == ".." ||
      std::any_of(name.begin(), name.end(), is_separator_or_control)) {
    throw std::invalid_argument(
        text("'", printable(name), "' is not the name of a file beside it."));
  }
}

}  // namespace

std::map<std::string, std::string> parse_shard_index(std::string_view index) {
  const Json json = Json::parse(index);
  std::map<std::string, std::string> places;
  for (const auto& [tensor, file] : json.at("weight_map").as_object()) {
    check_shard_name(file.as_string());
    places.emplace(tensor, file.as_string());
  }
  return places;
}

}  // namespace vllm_metal
