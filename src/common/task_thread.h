// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <condition_variable>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <queue>
#include <thread>
#include <utility>

namespace vllm_metal {

// A thread that runs tasks one after the other, in the order they came.
class TaskThread {
 public:
  TaskThread();
  ~TaskThread();  // once all tasks ran

  // `task` must not throw.
  void post(std::function<void()> task);

  // Waits for `function` and returns or throws what it does.
  template <typename Function>
  auto run(Function&& function) {
    using Result = decltype(function());
    auto task = std::make_shared<std::packaged_task<Result()>>(std::forward<Function>(function));
    auto result = task->get_future();
    post([task] { (*task)(); });
    return result.get();
  }

 private:
  void work();

  std::mutex mutex_;
  std::condition_variable ready_;
  std::queue<std::function<void()>> tasks_;
  bool ending_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace vllm_metal
