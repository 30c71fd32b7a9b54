// SPDX-License-Identifier: Apache-2.0
#include "files/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "common/text.h"

namespace vllm_metal {

namespace {

[[noreturn]] void fail(const std::filesystem::path& path, int error) {
  throw std::runtime_error(text("[files] cannot read ", path.string(), ": ",
                                std::generic_category().message(error), "."));
}

// Some systems refuse to read more than 2 GiB at once.
constexpr size_t kMaxReadBytes = size_t{1} << 30;

}  // namespace

InputFile::InputFile(std::filesystem::path path) : path_(std::move(path)) {
  // Non-blocking, so that a pipe in a file's place is an error and not an endless wait.
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) fail(path_, errno);
  struct stat status{};
  int error = ::fstat(descriptor_, &status) == 0 ? 0 : errno;
  if (error == 0 && S_ISDIR(status.st_mode)) error = EISDIR;
  if (error == 0 && !S_ISREG(status.st_mode)) error = EINVAL;
  if (error != 0) {
    ::close(descriptor_);
    fail(path_, error);
  }
  size_ = static_cast<uint64_t>(status.st_size);
}

InputFile::~InputFile() { ::close(descriptor_); }

void InputFile::read(uint64_t offset, std::span<std::byte> out) const {
  if (offset > size_ || out.size() > size_ - offset) {
    throw std::runtime_error(text("[files] ", path_.string(), " has ", size_,
                                  " bytes; cannot read ", out.size(), " at offset ", offset, "."));
  }
  while (!out.empty()) {
    ssize_t count = ::pread(descriptor_, out.data(), std::min(out.size(), kMaxReadBytes),
                            static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(path_, errno);
    if (count == 0) {
      throw std::runtime_error(
          text("[files] ", path_.string(), " became shorter while it was being read."));
    }
    out = out.subspan(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
}

std::string read_small_file(const std::filesystem::path& path, uint64_t max_bytes) {
  InputFile file(path);
  if (file.size() > max_bytes) {
    throw std::invalid_argument(text("[files] ", path.string(), " has ", file.size(),
                                     " bytes; at most ", max_bytes, " are allowed."));
  }
  std::string content(file.size(), '\0');
  file.read(0, std::as_writable_bytes(std::span(content)));
  return content;
}

}  // namespace vllm_metal
