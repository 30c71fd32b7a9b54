// SPDX-License-Identifier: Apache-2.0
// The library never prints: it hands messages to a sink that the program sets
// (Python's logging in the plugin, stderr in the examples). No sink: dropped.
#pragma once

#include <functional>
#include <string>

namespace vllm_metal {

enum class LogLevel { kDebug, kInfo, kWarning };

using LogSink = std::function<void(LogLevel, const std::string&)>;

// Thread-safe. The sink may be called from any thread; an empty one silences.
void set_log_sink(LogSink sink);
void log(LogLevel level, const std::string& message);

}  // namespace vllm_metal
