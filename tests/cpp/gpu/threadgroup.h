// SPDX-License-Identifier: Apache-2.0
// Runs the threads of a threadgroup as fibers, in random order, one after the other between the
// points where they meet: barriers and operations of a simdgroup. What a GPU leaves undefined is
// an error here that says what happened: threads that do not all come to a meeting, or come to
// different ones.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "gpu/fiber.h"

namespace gpu_harness {

constexpr int kSimdWidth = 32;

struct uint3 {
  unsigned x, y, z;
};

// What a kernel did that a GPU does not define.
struct KernelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where in a source a thread waits.
struct Site {
  const char* operation;
  const char* file;
  int line;

  bool operator==(const Site& other) const {
    return line == other.line && std::strcmp(operation, other.operation) == 0 &&
           std::strcmp(file, other.file) == 0;
  }
  std::string text() const;
};

// Groups of one dispatch, counted in groups, and the threads of each.
struct Grid {
  unsigned x, y;
  int num_threads;
};

// What a thread brings to an operation of its simdgroup, and takes from it.
struct Exchange {
  static constexpr size_t kBytes = 32;
  alignas(8) std::array<char, kBytes> bytes;

  template <typename T>
  void set(const T& value) {
    static_assert(sizeof(T) <= kBytes && std::is_trivially_copyable_v<T>);
    std::memcpy(bytes.data(), &value, sizeof(T));
  }
  template <typename T>
  T get() const {
    T value;
    std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
  }
};

class ThreadgroupMemory;

// The dispatch that is under way. There is one at a time.
class Dispatch {
 public:
  Dispatch(const Grid& grid, unsigned seed, const std::function<void()>& kernel);
  ~Dispatch();
  void run();  // throws KernelError

  static Dispatch& current();

  // Of the running thread.
  int thread() const { return running_; }
  int64_t global_thread() const { return group_ * grid_.num_threads + running_; }
  uint3 group_position() const;
  // Counts the barriers that the group has passed: what is written in one epoch may be read by
  // others in the next.
  uint32_t epoch() const { return epoch_; }
  int64_t group() const { return group_; }
  ThreadgroupMemory& memory() { return *memory_; }

  void barrier(const Site& site);
  // Returns what `combine` leaves in `outputs` for this lane, once all lanes have come.
  using Lanes = std::array<Exchange, kSimdWidth>;
  using Combine = void (*)(const Lanes& inputs, Lanes& outputs);
  const Exchange& exchange(const Site& site, const Exchange& input, Combine combine);

 private:
  struct Meeting {
    int expected = 0;
    int arrived = 0;
    Site site{};
    std::vector<int> waiting;
  };
  struct Simdgroup {
    Meeting meeting;
    Lanes inputs, outputs;
  };

  static void fiber_main();
  void start_group();
  bool arrive(Meeting& meeting, const Site& site, const char* whom);  // true for the last one
  void run_next();
  unsigned random(unsigned bound);
  std::string who_waits() const;

  Grid grid_;
  const std::function<void()>& kernel_;
  uint64_t random_state_;
  std::unique_ptr<ThreadgroupMemory> memory_;
  Fiber main_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Simdgroup> simdgroups_;
  Meeting barrier_;
  std::vector<int> ready_;
  std::vector<bool> done_;
  int num_done_ = 0;
  int running_ = -1;
  int64_t group_ = 0;
  uint32_t epoch_ = 0;
  std::string error_;
};

// Runs `kernel` in each thread of the grid, groups one after the other in random order.
inline void launch(const Grid& grid, unsigned seed, const std::function<void()>& kernel) {
  Dispatch(grid, seed, kernel).run();
}

}  // namespace gpu_harness

#include "gpu/threadgroup_memory.h"
#include "gpu/threadgroup_run.h"
