// SPDX-License-Identifier: Apache-2.0
// The bodies of threadgroup.h.
#pragma once

#include <algorithm>
#include <map>
#include <numeric>
#include <sstream>

#include "gpu/threadgroup.h"

namespace gpu_harness {

inline Dispatch*& current_dispatch() {
  static Dispatch* dispatch = nullptr;
  return dispatch;
}

inline Dispatch& Dispatch::current() {
  if (current_dispatch() == nullptr) throw std::logic_error("no kernel is running");
  return *current_dispatch();
}

inline std::string Site::text() const {
  const char* slash = std::strrchr(file, '/');
  std::ostringstream out;
  out << operation << " (" << (slash == nullptr ? file : slash + 1) << ":" << line << ")";
  return out.str();
}

inline Dispatch::Dispatch(const Grid& grid, unsigned seed, const std::function<void()>& kernel)
    : grid_(grid),
      kernel_(kernel),
      random_state_(seed * 0x9e3779b97f4a7c15u + 1),
      memory_(std::make_unique<ThreadgroupMemory>()),
      simdgroups_((grid.num_threads + kSimdWidth - 1) / kSimdWidth) {
  if (grid.num_threads % kSimdWidth != 0) throw std::logic_error("simdgroups must be whole");
  for (int i = 0; i < grid.num_threads; ++i)
    fibers_.push_back(std::make_unique<Fiber>(&Dispatch::fiber_main));
  current_dispatch() = this;
}

inline Dispatch::~Dispatch() { current_dispatch() = nullptr; }

inline unsigned Dispatch::random(unsigned bound) {
  random_state_ ^= random_state_ << 13;
  random_state_ ^= random_state_ >> 7;
  random_state_ ^= random_state_ << 17;
  return static_cast<unsigned>((random_state_ >> 33) * bound >> 31);
}

inline uint3 Dispatch::group_position() const {
  return {static_cast<unsigned>(group_ % grid_.x), static_cast<unsigned>(group_ / grid_.x), 0};
}

inline void Dispatch::run() {
  std::vector<int64_t> groups(size_t{grid_.x} * grid_.y);
  std::iota(groups.begin(), groups.end(), 0);
  for (size_t i = groups.size(); i > 1; --i)
    std::swap(groups[i - 1], groups[random(static_cast<unsigned>(i))]);
  for (int64_t group : groups) {
    group_ = group;
    start_group();
    running_ = ready_.back();
    ready_.pop_back();
    main_.switch_to(*fibers_[running_]);
    running_ = -1;
    if (!error_.empty()) {
      const uint3 position = group_position();
      std::ostringstream out;
      out << "group (" << position.x << "," << position.y << "): " << error_;
      throw KernelError(out.str());
    }
  }
}

inline void Dispatch::start_group() {
  memory_->clear();
  epoch_ = 0;
  num_done_ = 0;
  done_.assign(grid_.num_threads, false);
  barrier_ = {};
  barrier_.expected = grid_.num_threads;
  for (auto& simdgroup : simdgroups_) {
    simdgroup.meeting = {};
    simdgroup.meeting.expected = kSimdWidth;
  }
  ready_.resize(grid_.num_threads);
  std::iota(ready_.begin(), ready_.end(), 0);
  std::swap(ready_.back(), ready_[random(static_cast<unsigned>(ready_.size()))]);
}

// A fiber runs the kernel once a group.
inline void Dispatch::fiber_main() {
  current().fibers_[current().running_]->entered();
  for (;;) {
    Dispatch& dispatch = current();
    try {
      dispatch.kernel_();
      dispatch.done_[dispatch.running_] = true;
      ++dispatch.num_done_;
    } catch (const std::exception& error) {
      dispatch.error_ = error.what();
    }
    dispatch.run_next();
  }
}

// Leaves the running thread for another one; for the caller of run() if that is the end.
inline void Dispatch::run_next() {
  Fiber& own = *fibers_[running_];
  if (error_.empty() && ready_.empty() && num_done_ < grid_.num_threads) error_ = who_waits();
  if (!error_.empty() || ready_.empty()) return own.switch_to(main_);
  std::swap(ready_.back(), ready_[random(static_cast<unsigned>(ready_.size()))]);
  const int next = ready_.back();
  ready_.pop_back();
  if (next == running_) return;
  running_ = next;
  own.switch_to(*fibers_[next]);
}

inline std::string Dispatch::who_waits() const {
  std::ostringstream out;
  out << "threads wait for others that do not come:";
  const auto describe = [&out](const Meeting& meeting) {
    if (meeting.arrived > 0)
      out << " " << meeting.arrived << " of " << meeting.expected << " at " << meeting.site.text();
  };
  describe(barrier_);
  for (size_t i = 0; i < simdgroups_.size(); ++i) {
    if (simdgroups_[i].meeting.arrived > 0) out << " simdgroup " << i << ":";
    describe(simdgroups_[i].meeting);
  }
  out << "; " << num_done_ << " have ended";
  return out.str();
}

inline bool Dispatch::arrive(Meeting& meeting, const Site& site, const char* whom) {
  if (meeting.arrived == 0) meeting.site = site;
  if (!(meeting.site == site))
    throw KernelError(std::string("threads of one ") + whom +
                      " meet at different places: " + meeting.site.text() + " and " + site.text());
  if (++meeting.arrived < meeting.expected) {
    meeting.waiting.push_back(running_);
    return false;
  }
  ready_.insert(ready_.end(), meeting.waiting.begin(), meeting.waiting.end());
  meeting.waiting.clear();
  meeting.arrived = 0;
  return true;
}

inline void Dispatch::barrier(const Site& site) {
  if (arrive(barrier_, site, "threadgroup")) {
    ++epoch_;
    ready_.push_back(running_);
  }
  run_next();
}

inline const Exchange& Dispatch::exchange(const Site& site, const Exchange& input,
                                          Combine combine) {
  const int lane = running_ % kSimdWidth;
  Simdgroup& simdgroup = simdgroups_[running_ / kSimdWidth];
  simdgroup.inputs[lane] = input;
  if (arrive(simdgroup.meeting, site, "simdgroup"))
    combine(simdgroup.inputs, simdgroup.outputs);
  else
    run_next();
  return simdgroup.outputs[lane];
}

}  // namespace gpu_harness
