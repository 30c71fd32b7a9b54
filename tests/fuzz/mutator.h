// SPDX-License-Identifier: Apache-2.0
// Mutations of files for machines without libFuzzer: blind to coverage, but the same everywhere.
#pragma once

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace vllm_metal {

using Bytes = std::vector<std::byte>;

// The files of a folder in the order of their names, so that a seed gives the same run everywhere.
inline std::vector<Bytes> read_corpus(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.is_regular_file()) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  std::vector<Bytes> corpus;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    Bytes& bytes = corpus.emplace_back();
    for (std::istreambuf_iterator<char> c(file), end; c != end; ++c) {
      bytes.push_back(static_cast<std::byte>(*c));
    }
  }
  return corpus;
}

class Mutator {
 public:
  explicit Mutator(uint32_t seed) : random_(seed) {}

  // One of the files after a few edits of the kinds that upset parsers.
  Bytes mutant(const std::vector<Bytes>& corpus) {
    Bytes bytes = corpus[below(corpus.size())];
    for (size_t edits = 1 + below(4); edits > 0; --edits) edit(bytes, corpus);
    return bytes;
  }

 private:
  size_t below(size_t bound) { return bound == 0 ? 0 : random_() % bound; }
  std::byte random_byte() { return static_cast<std::byte>(random_() & 255); }
  static auto at(Bytes& bytes, size_t i) { return bytes.begin() + static_cast<ptrdiff_t>(i); }

  void edit(Bytes& bytes, const std::vector<Bytes>& corpus) {
    const size_t place = below(bytes.size());
    switch (below(8)) {
      case 0:
        if (!bytes.empty()) bytes[place] ^= static_cast<std::byte>(1 << below(8));
        return;
      case 1:
        bytes.resize(place);
        return;
      case 2:
        bytes.insert(at(bytes, place), random_byte());
        return;
      case 3:
        return overwrite_number(bytes, place);
      case 4:
        return overwrite_digits(bytes, place);
      case 5:
        return insert_piece(bytes, place, Bytes(bytes));
      case 6:
        return insert_piece(bytes, place, corpus[below(corpus.size())]);
      default:
        bytes.erase(at(bytes, place), at(bytes, place + below(bytes.size() - place)));
    }
  }

  // Counts, lengths and offsets at the edges of their range.
  void overwrite_number(Bytes& bytes, size_t place) {
    static constexpr uint64_t kEdges[] = {
        0,         1, 0x7f, 0xff, 0x7fffffff, 0xffffffff, UINT64_MAX, INT64_MAX, UINT64_MAX - 31,
        1ull << 33};
    const uint64_t value = kEdges[below(std::size(kEdges))];
    const size_t width = below(2) ? 8 : 4;
    for (size_t i = 0; i < width && place + i < bytes.size(); ++i) {
      bytes[place + i] = static_cast<std::byte>(value >> (8 * i));
    }
  }

  // The same for numbers in text: the next one becomes another.
  void overwrite_digits(Bytes& bytes, size_t place) {
    static constexpr std::string_view kEdges[] = {"0",
                                                  "-1",
                                                  "4294967296",
                                                  "9223372036854775807",
                                                  "-9223372036854775808",
                                                  "18446744073709551616",
                                                  "1e308",
                                                  "1e-320",
                                                  "0.5",
                                                  "NaN",
                                                  "-Infinity"};
    auto is_digit = [](std::byte byte) { return std::isdigit(std::to_integer<int>(byte)) != 0; };
    auto first = std::find_if(at(bytes, place), bytes.end(), is_digit);
    auto last = std::find_if_not(first, bytes.end(), is_digit);
    const auto text = std::as_bytes(std::span(kEdges[below(std::size(kEdges))]));
    bytes.insert(bytes.erase(first, last), text.begin(), text.end());
  }

  // A piece of this file once more, or one of another.
  void insert_piece(Bytes& bytes, size_t place, const Bytes& from) {
    const size_t begin = below(from.size());
    const size_t length = below(std::min<size_t>(from.size() - begin, 256));
    const auto first = from.begin() + static_cast<ptrdiff_t>(begin);
    bytes.insert(at(bytes, place), first, first + static_cast<ptrdiff_t>(length));
  }

  std::mt19937 random_;
};

}  // namespace vllm_metal
