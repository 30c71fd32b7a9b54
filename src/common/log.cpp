// SPDX-License-Identifier: Apache-2.0
#include "common/log.h"

#include <mutex>
#include <utility>

namespace vllm_metal {

namespace {
std::mutex sink_mutex;
LogSink sink;
}  // namespace

void set_log_sink(LogSink new_sink) {
  std::lock_guard lock(sink_mutex);
  sink = std::move(new_sink);
}

void log(LogLevel level, const std::string& message) {
  LogSink current;
  {
    std::lock_guard lock(sink_mutex);
    current = sink;
  }
  if (current) current(level, message);
}

}  // namespace vllm_metal
