// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/parallel_for.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include <pthread.h>

#include "config/env.h"
#include "kernels/cpu/cores.h"

namespace vllm_metal::cpu {

namespace {

// How long a thread polls before it goes to sleep. Waking one takes the system some ten
// microseconds, as long as a small product does; this bridges the gap to the next op of a chain.
constexpr std::chrono::microseconds kSpin{50};

void pause_core() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Polls for a moment; true as soon as `ready()` is.
template <typename Ready>
bool spin_until(const Ready& ready) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + kSpin;
  do {
    for (int poll = 0; poll < 8; ++poll) {
      if (ready()) return true;
      pause_core();
    }
  } while (Clock::now() < end);
  return ready();
}

// Set while this thread runs a body: parallel_for then runs inline.
thread_local bool inside_body = false;

// Consecutive ranges of a job that are left to do. The thread whose slice it is takes them from the
// front, so that it reads memory in order; others help from the back.
class alignas(64) Slice {
 public:
  void reset(uint32_t begin, uint32_t end) { bounds_.store(pack(begin, end)); }
  void clear() { bounds_.store(0); }

  bool take_front(int64_t& range) {
    return take([&](uint32_t begin, uint32_t end) {
      range = begin;
      return pack(begin + 1, end);
    });
  }
  bool take_back(int64_t& range) {
    return take([&](uint32_t begin, uint32_t end) {
      range = end - 1;
      return pack(begin, end - 1);
    });
  }

 private:
  static uint64_t pack(uint32_t begin, uint32_t end) { return uint64_t{end} << 32 | begin; }

  template <typename Rest>
  bool take(const Rest& rest) {
    uint64_t bounds = bounds_.load(std::memory_order_relaxed);
    for (;;) {
      const auto begin = static_cast<uint32_t>(bounds), end = static_cast<uint32_t>(bounds >> 32);
      if (begin >= end) return false;
      if (bounds_.compare_exchange_weak(bounds, rest(begin, end), std::memory_order_relaxed))
        return true;
    }
  }

  std::atomic<uint64_t> bounds_{0};
};

struct Job {
  RangeBody body;
  const void* context;
  int64_t count;
  int64_t grain;
  std::vector<Slice>& slices;  // one a thread
  std::mutex error_mutex{};
  std::exception_ptr error{};

  int64_t num_ranges() const { return (count + grain - 1) / grain; }

  // Deals the ranges out evenly.
  void deal() {
    const int64_t ranges = num_ranges();
    const auto num_slices = static_cast<int64_t>(slices.size());
    for (int64_t i = 0; i < num_slices; ++i) {
      slices[static_cast<size_t>(i)].reset(static_cast<uint32_t>(ranges * i / num_slices),
                                           static_cast<uint32_t>(ranges * (i + 1) / num_slices));
    }
  }

  // Runs ranges until none is left, those of slice `own` first.
  void work(size_t own) {
    inside_body = true;
    int64_t range;
    while (slices[own].take_front(range)) run(range);
    for (size_t i = 1; i < slices.size(); ++i) {
      Slice& other = slices[(own + i) % slices.size()];
      while (other.take_back(range)) run(range);
    }
    inside_body = false;
  }

  // After an exception the remaining ranges are dropped.
  void run(int64_t range) {
    try {
      const int64_t begin = range * grain;
      body(context, begin, std::min(count, begin + grain));
    } catch (...) {
      std::lock_guard lock(error_mutex);
      if (!error) error = std::current_exception();
      for (Slice& slice : slices) slice.clear();
    }
  }
};

// The caller works on its job with those workers that are awake in time. It never waits for a
// worker that has not begun, so a short job costs no more than the caller's own work.
class Pool {
 public:
  // Returns what a body threw.
  std::exception_ptr run(RangeBody body, const void* context, int64_t count, int64_t grain) {
    std::lock_guard turn(turn_);
    std::call_once(started_, [this] { start(); });
    Job job{body, context, count, grain, slices_};
    job.deal();
    post(job);
    job.work(0);
    withdraw();
    return job.error;
  }

 private:
  void start() {
    for (int i = 1; i < num_threads(); ++i) {
      try {
        std::thread worker([this, i] { worker_loop(static_cast<size_t>(i)); });
        workers_.push_back(worker.native_handle());
        worker.detach();
      } catch (const std::system_error&) {
        break;  // the system gives no more threads: go on with those there are
      }
    }
  }

  void post(Job& job) {
    leave_core_to_caller();
    {
      std::lock_guard lock(mutex_);
      job_ = &job;
      num_posted_.fetch_add(1, std::memory_order_release);
    }
    const int64_t wanted = std::min<int64_t>(job.num_ranges(), num_threads()) - 1;
    for (int64_t i = 0; i < wanted; ++i) posted_.notify_one();
  }

  // Schedulers like to wake a thread on the core of the one that wakes it, where the two could only
  // take turns. The caller seldom moves.
  void leave_core_to_caller() {
    const int core = current_core();
    if (core == core_of_caller_) return;
    keep_off_core(workers_, core);
    core_of_caller_ = core;
  }

  // Lets no further worker join and waits for those that did.
  void withdraw() {
    {
      std::lock_guard lock(mutex_);
      job_ = nullptr;
    }
    if (spin_until([this] { return num_working_.load(std::memory_order_acquire) == 0; })) return;
    std::unique_lock lock(mutex_);
    left_.wait(lock, [this] { return num_working_.load(std::memory_order_acquire) == 0; });
  }

  void worker_loop(size_t slice) {
    uint64_t num_seen = 0;
    const auto has_news = [&] { return num_posted_.load(std::memory_order_acquire) != num_seen; };
    for (;;) {
      spin_until(has_news);
      std::unique_lock lock(mutex_);
      posted_.wait(lock, has_news);
      num_seen = num_posted_.load(std::memory_order_acquire);
      Job* job = job_;
      if (job == nullptr) continue;  // over before this worker woke up
      num_working_.fetch_add(1, std::memory_order_relaxed);
      lock.unlock();
      job->work(slice);
      lock.lock();
      if (num_working_.fetch_sub(1, std::memory_order_release) == 1) left_.notify_one();
    }
  }

  std::once_flag started_;
  std::mutex turn_;  // held by the caller whose job runs; guards the next three
  std::vector<Slice> slices_{static_cast<size_t>(num_threads())};
  std::vector<pthread_t> workers_;
  int core_of_caller_ = -1;  // of the last job's
  std::mutex mutex_;         // guards job_ and the counters' changes
  std::condition_variable posted_;
  std::condition_variable left_;
  Job* job_ = nullptr;                   // null: nothing to join
  std::atomic<uint64_t> num_posted_{0};  // jobs so far; what idle workers watch
  std::atomic<int> num_working_{0};      // workers that joined the current job
};

// Never destroyed: workers may sleep in it while the process ends. A forked child has none of
// the workers, so it drops the pool and makes its own when it needs one.
std::atomic<Pool*> process_pool{nullptr};

// Before main: a child forked in the middle of a local static's set-up would wait for it forever.
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { process_pool.store(nullptr); });

Pool& pool() {
  if (Pool* existing = process_pool.load(std::memory_order_acquire)) return *existing;
  Pool* expected = nullptr;
  Pool* created = new Pool;  // its threads start with its first job
  if (process_pool.compare_exchange_strong(expected, created)) return *created;
  delete created;
  return *expected;
}

int choose_num_threads() {
  const int cores = std::max(cores_of_process(), 1);
  const int limit = omp_num_threads();
  return limit > 0 ? std::min(cores, limit) : cores;
}

}  // namespace

int num_threads() {
  static std::atomic<int> chosen{0};  // by whoever comes first; all choose the same
  int count = chosen.load(std::memory_order_relaxed);
  if (count == 0) chosen.store(count = choose_num_threads(), std::memory_order_relaxed);
  return count;
}

void parallel_for(int64_t count, int64_t grain, RangeBody body, const void* context) {
  if (count <= 0) return;
  grain = std::max<int64_t>(grain, 1);
  if (count <= grain || num_threads() == 1 || inside_body) {
    for (int64_t begin = 0; begin < count; begin += grain)
      body(context, begin, std::min(count, begin + grain));
    return;
  }
  // Ranges are counted in 32 bits.
  constexpr int64_t kMaxRanges = int64_t{1} << 31;
  grain = std::max(grain, (count + kMaxRanges - 1) / kMaxRanges);
  if (const auto error = pool().run(body, context, count, grain)) std::rethrow_exception(error);
}

}  // namespace vllm_metal::cpu
